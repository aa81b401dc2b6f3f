"""SANA and SANA-Sprint against diffusers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from agreement import PROMPT, SIZES, Case, agree, every_technique, hears, opened, relative
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage

CASE = Case(ask={"use_resolution_binning": False})
DPM = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return opened(
        tiny_families.sana(tmp_path_factory.mktemp("sana"), FlowMatchEulerDiscreteScheduler(shift=3.0))
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """With the scheduler that the published folders have."""
    from diffusers import DPMSolverMultistepScheduler

    return opened(
        tiny_families.sana(tmp_path_factory.mktemp("published"), DPMSolverMultistepScheduler(**DPM))
    )


@pytest.fixture(scope="module")
def sprint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from diffusers import SCMScheduler

    return opened(tiny_families.sana(tmp_path_factory.mktemp("sprint"), SCMScheduler(), "SanaSprintPipeline"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, CASE)


def test_prompt_matters(pair: tuple[Any, Any]) -> None:
    hears(pair[0])


def test_codec(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    pictures = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        expected = pipe.vae.encode(pictures * 2 - 1).latent * 0.41
    torch.testing.assert_close(model.encode_image(pictures), expected)


def test_published_scheduler(published: tuple[Any, Any]) -> None:
    """Told whole steps, as the solver of diffusers tells them, ours agrees up to the spread of the noise, 0.9997."""
    model, pipe = published
    assert model.defaults.sampler == "dpmpp-2m"
    pipe.scheduler.set_timesteps(4)
    times = torch.tensor(model.default_schedule(64, 64)(4, model.denoise.path))
    torch.testing.assert_close(times, pipe.scheduler.sigmas)
    noise = SeededNoise.batch(7, 1, model.latent_shape(64, 64))()
    ask = {"width": 64, "height": 64, "num_inference_steps": 4, "output_type": "latent", **CASE.ask}
    theirs = pipe(PROMPT, negative_prompt="", guidance_scale=4.5, latents=noise, **ask).images
    call = model.denoise.call
    floored = replace(
        model.denoise, call=lambda net, x, t, embeds: call(net, x, int(t * 1000) / 1000, embeds)
    )
    ours, told, euler = (
        TextToImage(model, sampler=sampler)(PROMPT, width=64, height=64, steps=4, seed=7).latents
        for model, sampler in ((model, None), (replace(model, denoise=floored), None), (model, Ddim()))
    )
    assert relative(ours, theirs) < 2e-2
    assert relative(told, theirs) < 1e-3
    assert relative(euler, theirs) > 2e-2


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_sprint_is_diffusers(sprint: tuple[Any, Any], steps: int) -> None:
    model, pipe = sprint
    ours = TextToImage(model, distilled=3.0)(PROMPT, width=96, height=64, steps=steps, seed=7, count=2)
    seeds = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    shape = model.latent_shape(96, 64)
    noise = torch.cat([torch.randn(1, *shape, generator=seed) for seed in seeds])
    ask = {"width": 96, "height": 64, "num_inference_steps": steps, "output_type": "latent", **CASE.ask}
    middle = 1.3 if steps == 2 else None
    theirs = pipe(
        [PROMPT] * 2, guidance_scale=3.0, generator=seeds, latents=noise, intermediate_timesteps=middle, **ask
    ).images
    assert relative(ours.latents, theirs) < 1e-4
    other = TextToImage(model, distilled=5.0)(PROMPT, width=96, height=64, steps=steps, seed=7, count=2)
    assert relative(other.latents, ours.latents) > 1e-3


def test_unknown_scheduler(pair: tuple[Any, Any], tmp_path: Path) -> None:
    from diffusers import DDIMScheduler
    from sfumato.pipelines.errors import BadWeights

    with pytest.raises(BadWeights, match="DDIMScheduler"):
        open_model(tiny_families.sana(tmp_path, DDIMScheduler()))


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
