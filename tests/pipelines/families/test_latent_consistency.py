"""Latent consistency models against diffusers, with the noise of the same generators."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import PROMPT, SIZES, STEPS, every_technique, hears, opened, relative
from sfumato.pipelines.errors import BadWeights
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from diffusers import LCMScheduler

    return opened(
        tiny_models.stable_diffusion(
            tmp_path_factory.mktemp("lcm"),
            pipeline="LatentConsistencyModelPipeline",
            gain=4,
            unet={"time_cond_proj_dim": 17},
            replaced={"scheduler": LCMScheduler()},
        )
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float | None, count: int, size: tuple[int, int]) -> None:
    model, pipe = pair
    width, height = size
    ours = TextToImage(model, distilled=scale)(
        PROMPT, width=width, height=height, steps=STEPS, seed=7, count=count
    )

    def theirs(output: str) -> Any:
        generators = [torch.Generator().manual_seed(7 + i) for i in range(count)]
        shape = model.latent_shape(width, height)
        return pipe(
            prompt=[PROMPT] * count,
            guidance_scale=scale or 8.5,
            width=width,
            height=height,
            num_inference_steps=STEPS,
            latents=torch.stack([torch.randn(shape, generator=g) for g in generators]),
            generator=generators,
            output_type=output,
        ).images

    assert relative(ours.latents, theirs("latent")) < 1e-4
    pixels = torch.from_numpy(theirs("np")).permute(0, 3, 1, 2)
    assert float((ours.pixels - pixels).abs().max()) <= 1 / 255


def test_prompt_and_scale_matter(pair: tuple[Any, Any]) -> None:
    hears(pair[0], 0.01)
    ask = {"width": 64, "height": 64, "steps": 1}
    usual, same, other = (TextToImage(pair[0], distilled=s)("a", **ask).latents for s in (None, 8.5, 2.0))
    assert torch.equal(usual, same) and relative(other, usual) > 0.01


def test_defaults_and_refusal(pair: tuple[Any, Any], tmp_path: Path) -> None:
    assert pair[0].defaults == (64, 64, 4, 8.5, "lcm", "uniform")
    folder = tiny_models.stable_diffusion(tmp_path / "a", pipeline="LatentConsistencyModelPipeline")
    with pytest.raises(BadWeights, match="time_cond_proj_dim is null"):
        open_model(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionPipeline"}))
    assert open_model(folder).family == "sd"


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
