"""Text to video: `TextToImage` on a model whose length is fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from ..pipelines.errors import BadInput
from ..pipelines.loop import Control
from ..pipelines.protocols import Guidance, Patch, Sampler, Schedule, Wrap
from ..pipelines.text_to_image import TextToImage, Timings
from .protocols import ClipModel


@dataclass(frozen=True, eq=False)
class Clips:
    """What came out, and what it takes to know it again."""

    pixels: Tensor
    """[B,3,F,H,W] in 0..1, float32 on the CPU."""
    latents: Tensor
    """[B,C,f,h,w], as the sampler left them."""
    fps: float
    """Frames per second to show them at."""
    seeds: tuple[int, ...]
    timings: Timings
    dropped: tuple[str, ...]
    """Per prompt, the end that was too long for the model; empty text if nothing was cut."""

    @property
    def frames(self) -> list[list[Image.Image]]:
        """The pictures of each clip."""
        data = (self.pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
        return [[Image.fromarray(picture) for picture in clip] for clip in data]


@dataclass(frozen=True)
class TextToVideo:
    """What is None is the model's own default."""

    model: ClipModel
    sampler: Sampler | None = None
    schedule: Schedule | None = None
    guidance: Guidance | None = None
    patches: tuple[Patch, ...] = ()
    wraps: tuple[Wrap, ...] = ()
    distilled: float | None = None
    """The guidance scale that a distilled net (HunyuanVideo) takes as an input, 0 and up."""
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """Frames that the model needs or accepts beside the prompt, [1,3,H,W] in 0..1; the clip has their size."""
    fps: float | None = None
    """Frames per second, which some networks are told."""
    motion: float | None = None
    """How much moves, for networks that are told it (Stable Video Diffusion: 0..255)."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative: str | Sequence[str] = "",
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        count: int = 1,
        control: Control | None = None,
    ) -> Clips:
        """`count` clips of each prompt, of (width, height) = `size`. Clip i has seed `seed` + i at any batch size."""
        model = self.model.at(frames, fps=self.fps, motion=self.motion)
        width, height = self._size(size)
        made = TextToImage(
            model,
            sampler=self.sampler,
            schedule=self.schedule,
            guidance=self.guidance or model.guide,
            patches=self.patches,
            wraps=self.wraps,
            distilled=self.distilled,
            pictures=self.pictures,
        )(
            prompt,
            negative=negative,
            width=width,
            height=height,
            steps=steps,
            seed=seed,
            count=count,
            control=control,
        )
        return Clips(made.pixels, made.latents, model.span.fps, made.seeds, made.timings, made.dropped)

    def _size(self, asked: tuple[int, int] | None) -> tuple[int, int]:
        """Width and height: those of the pictures, which must agree with what is asked."""
        found = asked
        for name, picture in self.pictures.items():
            own = int(picture.shape[-1]), int(picture.shape[-2])
            found = found or own
            if own != found:
                raise BadInput(
                    "pictures",
                    f"the picture {name!r} is {own[0]}x{own[1]}, the clip {found[0]}x{found[1]}; resize or crop it",
                )
        return found or (self.model.defaults.width, self.model.defaults.height)
