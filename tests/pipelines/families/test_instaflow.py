"""Straight flows in Stable Diffusion's layout against Euler's method: diffusers has no pipeline for them."""

from itertools import pairwise
from typing import Any

import pytest
import tiny_models
import torch
from agreement import NEGATIVE, PROMPT, SIZES, STEPS, every_technique, hears, relative
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module", params=["RectifiedFlowPipeline", "StableDiffusionPipeline"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline

    straight = request.param == "RectifiedFlowPipeline"
    folder = tiny_models.stable_diffusion(
        tmp_path_factory.mktemp("flow"),
        pipeline=request.param,
        gain=4,
        replaced={} if straight else {"scheduler": FlowMatchEulerDiscreteScheduler(shift=2.5)},
    )
    return open_model(folder), StableDiffusionPipeline.from_pretrained(folder)


@torch.no_grad()
def euler(pipe: Any, x: torch.Tensor, scale: float, steps: int) -> torch.Tensor:
    """Down the sigmas of the scheduler if it has any; else evenly, with a UNet that points at the data."""
    pos, neg = pipe.encode_prompt([PROMPT] * len(x), "cpu", 1, True, [NEGATIVE] * len(x))
    sigmas, sign = torch.tensor([1 - i / steps for i in range(steps + 1)]), 1
    if hasattr(pipe.scheduler, "sigmas"):
        pipe.scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
        sigmas, sign = pipe.scheduler.sigmas, -1
    for high, low in pairwise(sigmas):
        yes, no = (pipe.unet(x, 1000 * high, encoder_hidden_states=words).sample for words in (pos, neg))
        x = x + sign * (high - low) * (no + scale * (yes - no))
    return x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("scale", "steps"), [(1.0, 1), (4.0, STEPS)])
def test_is_euler(pair: tuple[Any, Any], scale: float, steps: int, count: int, size: tuple[int, int]) -> None:
    model, pipe = pair
    width, height = size
    ours = TextToImage(model, guidance=Cfg(scale))(
        PROMPT, negative=NEGATIVE, width=width, height=height, steps=steps, seed=7, count=count
    )
    want = euler(pipe, SeededNoise.batch(7, count, model.latent_shape(width, height))(), scale, steps)
    assert relative(ours.latents, want) < 1e-4
    with torch.no_grad():
        pixels = pipe.vae.decode(want / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    assert float((ours.pixels - pixels.clamp(0, 1)).abs().max()) <= 1 / 255


def test_defaults(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    hears(model, 0.01)
    straight = not hasattr(pipe.scheduler, "sigmas")
    assert model.family == "instaflow"
    assert model.defaults == (64, 64, *((1, 1.0) if straight else (30, 7.5)), "ddim", "uniform")


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
