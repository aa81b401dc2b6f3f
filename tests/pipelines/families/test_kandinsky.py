"""Kandinsky 2.2 against diffusers: prior and decoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from agreement import NEGATIVE, PROMPT, STEPS, every_technique, hears, relative
from sfumato.pipelines.errors import BadWeights
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage

SIZES = ((64, 64), (128, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.kandinsky(tmp_path_factory.mktemp("kandinsky"))


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    from diffusers import KandinskyV22Pipeline

    pipe = KandinskyV22Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return open_model(folder), pipe


@pytest.fixture(scope="module")
def prior(folder: Path) -> Any:
    from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    pipe = KandinskyV22PriorPipeline(
        PriorTransformer.from_pretrained(folder / "prior_prior"),
        CLIPVisionModelWithProjection.from_pretrained(folder / "prior_image_encoder"),
        CLIPTextModelWithProjection.from_pretrained(folder / "prior_text_encoder"),
        CLIPTokenizer.from_pretrained(folder / "prior_tokenizer"),
        UnCLIPScheduler.from_pretrained(folder / "prior_scheduler"),
        None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(
    pair: tuple[Any, Any], prior: Any, scale: float, count: int, size: tuple[int, int]
) -> None:
    model, pipe = pair
    width, height = size
    pos, none = prior(PROMPT, generator=torch.Generator().manual_seed(0), return_dict=False)
    ours = TextToImage(model, sampler=Ddim(), guidance=Cfg(scale))(
        PROMPT, width=width, height=height, steps=STEPS, seed=7, count=count
    )
    ask = {
        "image_embeds": pos.repeat(count, 1),
        "negative_image_embeds": none.repeat(count, 1),
        "guidance_scale": scale,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
    }

    def noise() -> torch.Tensor:
        return SeededNoise.batch(7, count, model.latent_shape(width, height))()

    latents = pipe(**ask, latents=noise(), output_type="latent").images
    pixels = torch.from_numpy(pipe(**ask, latents=noise(), output_type="np").images).permute(0, 3, 1, 2)
    assert relative(ours.latents, latents) < 1e-4
    assert float((ours.pixels - pixels).abs().max()) <= 1 / 255


def test_what_to_avoid(pair: tuple[Any, Any], prior: Any) -> None:
    """The embedding of a negative prompt is diffusers'; one row of an empty prompt is a black picture."""
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    _, want = prior(PROMPT, NEGATIVE, generator=generators, return_dict=False)
    _, black = prior(PROMPT, return_dict=False)
    got = pair[0].encode([NEGATIVE, ""], key="neg").embeds["image"]
    torch.testing.assert_close(got, torch.cat([want, black]), rtol=1e-4, atol=1e-5)
    assert relative(want, black) > 0.1


def test_prompts_and_defaults(pair: tuple[Any, Any]) -> None:
    model = pair[0]
    hears(model, 0.01, STEPS)
    both, one = model.encode(["b", PROMPT], key="pos"), model.encode([PROMPT], key="pos")
    torch.testing.assert_close(both.embeds["image"][1:], one.embeds["image"], rtol=1e-4, atol=1e-5)
    assert model.defaults == (64, 64, 30, 4.0, "dpmpp-2m", "uniform")


def test_halves_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyV22Pipeline"}))
    with pytest.raises(BadWeights, match="one half of Kandinsky"):
        open_model(tmp_path)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
