"""One family's path through Sfumato against its diffusers pipeline: same folder, noise, prompt; same result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.protocols import Model, Sampler, Schedule
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import Images, TextToImage

PROMPT, NEGATIVE = "a red cube on a table", "blurry"
SIZES = ((64, 64), (96, 64))
STEPS = 3


@dataclass(frozen=True)
class Case:
    """How a family's diffusers pipeline is asked, where it differs from most.

    `pack(pipe, latents)` turns our latents into what the pipeline takes as `latents`, `unpack(pipe, out, width,
    height)` turns its final latents into ours, `ask` are further arguments of its call.
    """

    sampler: Sampler = field(default_factory=Ddim)
    schedule: Schedule | None = None
    guidance: str = "guidance_scale"
    ask: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pack: Callable[[Any, torch.Tensor], torch.Tensor] = lambda pipe, x: x
    unpack: Callable[[Any, torch.Tensor, int, int], torch.Tensor] = lambda pipe, x, width, height: x


def opened(folder: Path) -> tuple[Model, Any]:
    """The same folder through both doors."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return open_model(folder), pipe


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def agree(model: Model, pipe: Any, scale: float, count: int, size: tuple[int, int], case: Case) -> Images:
    """Assert that latents agree to 1e-4 and pictures to 1/255, and return ours."""
    width, height = size
    ours = TextToImage(
        model, sampler=case.sampler, schedule=case.schedule, guidance=Cfg(scale), pictures=case.pictures
    )(PROMPT, negative=NEGATIVE, width=width, height=height, steps=STEPS, seed=7, count=count)
    ask = {
        "prompt": [PROMPT] * count,
        "negative_prompt": [NEGATIVE] * count,
        case.guidance: scale,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
        **case.ask,
    }

    def noise() -> torch.Tensor:
        return case.pack(pipe, SeededNoise.batch(7, count, model.latent_shape(width, height))())

    latents = pipe(**ask, latents=noise(), output_type="latent").images
    pixels = torch.from_numpy(pipe(**ask, latents=noise(), output_type="np").images).permute(0, 3, 1, 2)
    assert relative(ours.latents, case.unpack(pipe, latents, width, height)) < 1e-4
    assert float((ours.pixels - pixels).abs().max()) <= 1 / 255
    return ours
