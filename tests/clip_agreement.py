"""One family's clips through Sfumato against its diffusers pipeline: same folder, noise, prompt; same result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import NEGATIVE, PROMPT, relative
from PIL import Image
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.protocols import Guidance, Sampler
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.video.loading import open_clip_model
from sfumato.video.protocols import ClipModel
from sfumato.video.text_to_video import Clips, TextToVideo

RUNS = ((1.0, 1, (64, 64)), (4.0, 2, (96, 64)), (1.0, 2, (96, 64)), (4.0, 1, (64, 64)))
"""Guidance, clips, size: each with each of the others."""


@dataclass(frozen=True)
class ClipCase:
    """How a family's diffusers pipeline is asked, where it differs from most; see `agreement.Case`."""

    sampler: Sampler = field(default_factory=Ddim)
    frames: int = 5
    steps: int = 3
    guidance: str = "guidance_scale"
    guide: Callable[[float], Guidance] = Cfg
    distilled: float | None = None
    prompts: bool = True
    ask: Callable[[int], Mapping[str, Any]] = lambda count: {}
    """Further arguments for so many clips."""
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pack: Callable[[Any, torch.Tensor], torch.Tensor] = lambda pipe, x: x
    unpack: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor] = lambda pipe, x, ours: x
    """(pipeline, its latents, ours, for their shape)."""


def opened(folder: Path) -> tuple[ClipModel, Any]:
    """The same folder through both doors."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return open_clip_model(folder), pipe


def agree(model: ClipModel, pipe: Any, run: tuple[float, int, tuple[int, int]], case: ClipCase) -> Clips:
    """Assert that latents agree to 1e-4 and frames to 1/255, and return ours."""
    scale, count, (width, height) = run
    ours = TextToVideo(
        model,
        sampler=case.sampler,
        guidance=case.guide(scale),
        distilled=case.distilled,
        pictures=case.pictures,
    )(
        PROMPT,
        negative=NEGATIVE,
        size=(width, height),
        frames=case.frames,
        steps=case.steps,
        seed=7,
        count=count,
    )
    words = {"prompt": [PROMPT] * count, "negative_prompt": [NEGATIVE] * count} if case.prompts else {}

    def theirs(kind: str) -> Any:
        noise = SeededNoise.batch(7, count, model.latent_shape(width, height, case.frames))()
        return pipe(
            **words,
            **{case.guidance: scale},
            **case.ask(count),
            width=width,
            height=height,
            num_frames=case.frames,
            num_inference_steps=case.steps,
            latents=case.pack(pipe, noise),
            output_type=kind,
        ).frames

    latents = case.unpack(pipe, theirs("latent"), ours.latents)
    assert relative(ours.latents, latents) < 1e-4
    pixels = torch.from_numpy(theirs("np")).permute(0, 4, 1, 2, 3)
    assert pixels.shape == ours.pixels.shape == (count, 3, case.frames, height, width)
    assert float((ours.pixels - pixels).abs().max()) <= 1 / 255
    return ours


def hears(model: ClipModel, case: ClipCase, floor: float = 1e-3) -> None:
    """Assert that another prompt gives other latents, without which an agreement says little."""
    red, frogs = (
        TextToVideo(model, guidance=Cfg(1.0), pictures=case.pictures)(
            prompt, size=(64, 64), frames=case.frames, steps=1, seed=7
        ).latents
        for prompt in (PROMPT, "seven green frogs")
    )
    assert relative(frogs, red) > floor


def encodes(model: ClipModel, case: ClipCase) -> None:
    """Assert that clips become latents of the right shape, the same each time."""
    clip = torch.rand(1, 3, case.frames, 64, 96, generator=torch.Generator().manual_seed(0))
    z = model.encode_image(clip)
    assert z.shape == (1, *model.latent_shape(96, 64, case.frames))
    assert torch.equal(z, model.encode_image(clip))
    assert model.decode(z).shape == clip.shape
    with pytest.raises(BadInput, match="multiple of"):
        model.encode_image(clip[..., :-1])
    with pytest.raises(BadInput, match="a clip"):
        model.encode_image(clip[:, :, 0])


def half(pipe: Any, case: ClipCase) -> None:
    """Assert that the folder of a pipeline runs in bfloat16."""
    model = open_clip_model(pipe.name_or_path, dtype=torch.bfloat16)
    assert model.info()["dtype"] == "bfloat16"
    assert torch.bfloat16 in {weight.dtype for weight in model.denoise.net.parameters()}
    made = TextToVideo(model, pictures=case.pictures)(PROMPT, size=(64, 64), frames=case.frames, steps=2)
    assert made.pixels.dtype == torch.float32 and bool(torch.isfinite(made.pixels).all())


def picture(width: int, height: int, seed: int = 0) -> tuple[Image.Image, torch.Tensor]:
    """Smooth colours as a picture and as its tensor [1,3,H,W]."""
    noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear")
    data = (smooth * 255).round().to(torch.uint8)
    return Image.fromarray(data[0].permute(1, 2, 0).numpy()), data / 255


def amend(folder: Path, **entries: Any) -> Path:
    """The folder with further entries in its index."""
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    return folder
