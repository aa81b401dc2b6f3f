"""One family's path through Sfumato against its diffusers pipeline: same folder, noise, prompt; same result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sfumato.app.builder import build
from sfumato.app.catalogue import techniques
from sfumato.app.chosen import Technique
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.protocols import Guidance, Model, Patch, Sampler, Schedule
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import Images, TextToImage

PROMPT, NEGATIVE = "a red cube on a table", "blurry"
SIZES = ((64, 64), (96, 64))
STEPS = 3


@dataclass(frozen=True)
class Case:
    """How a family's diffusers pipeline is asked, where it differs from most.

    `pack(pipe, latents)` turns our latents into what the pipeline takes as `latents`, `unpack(pipe, out, width,
    height)` turns its final latents into ours, `ask` are further arguments of its call, `negative` says whether it
    takes a negative prompt, and `guide` makes the guidance that it uses.
    """

    sampler: Sampler = field(default_factory=Ddim)
    schedule: Schedule | None = None
    guidance: str = "guidance_scale"
    ask: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    patches: tuple[Patch, ...] = ()
    negative: bool = True
    guide: Callable[[float], Guidance] = Cfg
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
        model,
        sampler=case.sampler,
        schedule=case.schedule,
        guidance=case.guide(scale),
        patches=case.patches,
        pictures=case.pictures,
    )(PROMPT, negative=NEGATIVE, width=width, height=height, steps=STEPS, seed=7, count=count)
    ask = {
        "prompt": [PROMPT] * count,
        **({"negative_prompt": [NEGATIVE] * count} if case.negative else {}),
        case.guidance: scale,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
        **case.ask,
    }

    def theirs(output: str) -> Any:
        noise = case.pack(pipe, SeededNoise.batch(7, count, model.latent_shape(width, height))())
        fresh = {name: list(value) if isinstance(value, list) else value for name, value in ask.items()}
        return pipe(**fresh, latents=noise, output_type=output).images  # some write into the lists of prompts

    latents = theirs("latent")
    pixels = torch.from_numpy(theirs("np")).permute(0, 3, 1, 2)
    assert relative(ours.latents, case.unpack(pipe, latents, width, height)) < 1e-4
    assert float((ours.pixels - pixels).abs().max()) <= 1 / 255
    return ours


def hears(model: Model, floor: float = 1e-3, steps: int = 1) -> None:
    """Assert that another prompt gives other latents, without which an agreement says little.

    With leading times, one step is at the least noise, where conditions hardly matter: give a few.
    """
    red, frogs = (
        TextToImage(model, guidance=Cfg(1.0))(prompt, width=64, height=64, steps=steps, seed=7).latents
        for prompt in (PROMPT, "seven green frogs")
    )
    assert relative(frogs, red) > floor


def every_technique(model: Model, task: str = "image") -> None:
    """Assert that each sampler, schedule, guidance and wrap that claims the task runs on the model.

    Those that need tensors of their own to be made are tested elsewhere. What a technique refuses it must refuse in
    words, before the first step.
    """
    needed = {"sampler": "sampler", "schedule": "schedule", "guidance": "guidance", "wrap": "wraps"}
    pictures = {name: torch.rand(1, 1 if name == "mask" else 3, 64, 64) for name in model.needs}
    latents: dict[str, torch.Tensor] = {}
    for kind, place in needed.items():
        for id, entry in techniques(kind).items():
            if task not in entry.tasks or any(setting.default is ... for setting in entry.settings):
                continue
            technique = build(Technique(id=id))
            chosen = {place: (technique,) if kind == "wrap" else technique}
            steps = 4 if id == "custom" else 2  # the steps of its default list
            make = TextToImage(model, **({"guidance": Cfg(2.0), "pictures": pictures} | chosen))
            try:
                latents[id] = make(
                    PROMPT, negative=NEGATIVE, width=64, height=64, steps=steps, seed=7
                ).latents
            except ValueError as refused:
                assert id in str(refused) or entry.name in str(refused), f"{id}: {refused}"
    assert len(latents) > 15
    assert all(bool(torch.isfinite(x).all()) for x in latents.values()), latents
