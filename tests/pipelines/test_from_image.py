"""Starting from a picture, against diffusers' image-to-image and inpainting pipelines on the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.from_image import FromImage
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage

PROMPT = "a red cube on a table"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return open_model(folder)


def picture(width: int = 96, height: int = 64) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))


def hole() -> torch.Tensor:
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 16:48, 32:72] = 1
    return mask


@pytest.mark.parametrize(("masked", "strength"), [(False, 0.5), (False, 1.0), (True, 0.5), (True, 0.9)])
def test_is_diffusers(folder: Path, model: Any, masked: bool, strength: float, monkeypatch: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

    kind = StableDiffusionInpaintPipeline if masked else StableDiffusionImg2ImgPipeline
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = SeededNoise.batch(7, 1, model.latent_shape(96, 64))()
    z = model.encode_image(picture())
    ask: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "blurry", "guidance_scale": 4.0}
    ask |= {"num_inference_steps": 6, "strength": strength, "output_type": "latent", "image": picture()}
    if masked:
        ask |= {"mask_image": hole(), "width": 96, "height": 64}
        module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint"
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *shape, **rest: noise)
        monkeypatch.setattr(pipe, "_encode_vae_image", lambda image, generator: z)
    else:
        monkeypatch.setattr(
            pipe, "prepare_latents", lambda image, t, *rest: pipe.scheduler.add_noise(z, noise, t)
        )
    theirs = pipe(**ask).images
    start = FromImage(picture(), strength, hole() if masked else None)
    make = TextToImage(model, sampler=Ddim(), guidance=Cfg(4.0), start=start)
    ours = make(PROMPT, negative="blurry", steps=6, seed=7)
    # This checkpoint's path ends at its first training step; diffusers leaves what is kept clean there.
    new = hole()[0, 0, ::8, ::8] == 1 if masked else torch.ones(8, 12, dtype=torch.bool)
    assert relative(ours.latents[..., new], theirs[..., new]) < 1e-4
    if masked:
        keep = (hole() == 0).expand_as(ours.pixels)
        assert torch.equal(ours.pixels[keep], picture()[keep])
        assert not torch.allclose(ours.pixels[~keep], picture()[~keep], atol=0.1)


def test_all_masked_is_image_to_image(model: Any) -> None:
    plain = TextToImage(model, start=FromImage(picture()))(PROMPT, steps=4, seed=1)
    masked = TextToImage(model, start=FromImage(picture(), mask=torch.ones(1, 1, 64, 96)))(
        PROMPT, steps=4, seed=1
    )
    assert torch.equal(plain.latents, masked.latents)
    assert torch.equal(plain.pixels, masked.pixels)


def test_batch_is_singles(model: Any) -> None:
    make = TextToImage(model, start=FromImage(picture(), mask=hole()))
    both = make(PROMPT, steps=4, seed=1, count=2)
    second = make(PROMPT, steps=4, seed=2)
    torch.testing.assert_close(both.latents[1:], second.latents, rtol=1e-4, atol=1e-5)


def test_little_strength_stays_near_the_picture(model: Any) -> None:
    far = [
        float(
            (
                TextToImage(model, start=FromImage(picture(), s))(PROMPT, steps=10).latents
                - model.encode_image(picture())
            ).norm()
        )
        for s in (0.1, 0.5, 1.0)
    ]
    assert far == sorted(far)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("strength", {"strength": 0.0}),
        ("strength", {"strength": 1.1}),
        ("strength", {"strength": float("nan")}),
        ("image", {"image": torch.zeros(3, 64, 64)}),
        ("mask", {"mask": torch.zeros(1, 1, 32, 32)}),
        ("mask", {"mask": torch.full((1, 1, 64, 96), 2.0)}),
    ],
)
def test_bad_input_is_named(field: str, given: dict) -> None:
    with pytest.raises(BadInput, match=field):
        FromImage(**{"image": picture(), **given})


def test_sizes_and_steps_that_do_not_fit(model: Any) -> None:
    with pytest.raises(BadInput, match="width = 64"):
        TextToImage(model, start=FromImage(picture()))(PROMPT, width=64)
    with pytest.raises(BadInput, match="less than one"):
        TextToImage(model, start=FromImage(picture(), 0.1))(PROMPT, steps=4)
    with pytest.raises(BadInput, match="multiple"):
        TextToImage(model, start=FromImage(picture(60, 60)))(PROMPT, steps=4)
