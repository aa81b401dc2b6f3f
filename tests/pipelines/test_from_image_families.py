"""Starting from a picture on the flow path and in SDXL, against diffusers' image-to-image pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import patched
import pytest
import tiny_models
import torch
from agreement import relative
from sfumato.pipelines.from_image import FromImage
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage

WIDTH, HEIGHT = 96, 64


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_flux_is_diffusers(tmp_path: Path, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import FluxImg2ImgPipeline

    folder = tiny_models.flux(tmp_path / "flux")
    model, pipe = open_model(folder), FluxImg2ImgPipeline.from_pretrained(folder)
    noise = SeededNoise.batch(7, 1, model.latent_shape(WIDTH, HEIGHT))()
    z = model.encode_image(picture())
    monkeypatch.setattr(pipe, "_encode_vae_image", lambda image, generator: z)
    monkeypatch.setattr(
        "diffusers.pipelines.flux.pipeline_flux_img2img.randn_tensor", lambda *shape, **rest: noise
    )
    packed = run(pipe, strength, guidance_scale=0.0, max_sequence_length=tiny_models.WORDS)
    theirs = pipe._unpack_latents(packed, HEIGHT, WIDTH, pipe.vae_scale_factor)
    assert relative(ours(model, strength, 1.0), theirs) < 1e-4


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_sdxl_is_diffusers(tmp_path: Path, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    folder = patched.sdxl(tmp_path / "sdxl")
    model, pipe = open_model(folder), StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
    noise = SeededNoise.batch(7, 1, model.latent_shape(WIDTH, HEIGHT))()
    z = model.encode_image(picture())
    monkeypatch.setattr(
        pipe, "prepare_latents", lambda image, t, *rest: pipe.scheduler.add_noise(z, noise, t)
    )
    sizes = {"original_size": (HEIGHT, WIDTH), "target_size": (HEIGHT, WIDTH)}
    theirs = run(pipe, strength, guidance_scale=4.0, negative_prompt="blurry", **sizes)
    assert relative(ours(model, strength, 4.0), theirs) < 1e-4


def picture() -> torch.Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))


def ours(model: Any, strength: float, scale: float) -> torch.Tensor:
    make = TextToImage(model, sampler=Ddim(), guidance=Cfg(scale), start=FromImage(picture(), strength))
    return make("a red cube", negative="blurry", steps=6, seed=7).latents


def run(pipe: Any, strength: float, **ask: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a red cube",
        image=picture(),
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=6,
        strength=strength,
        output_type="latent",
        **ask,
    ).images
