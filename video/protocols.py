"""What a model of clips says beyond a model of images. With its length fixed, it is a `Model` like any other."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..pipelines.protocols import Guidance, Model


class Lengths(NamedTuple):
    """Which numbers of frames a model takes: `every` k + 1. Far more than usual ask for `wraps/windows`."""

    every: int
    """1 takes any number."""
    usual: int
    fps: float
    """Frames per second that its clips are meant to be shown at."""


class Span(NamedTuple):
    """How long one clip is, and how much moves in it."""

    frames: int
    fps: float
    motion: float | None = None
    """The amount of motion, for the few networks that are told it (Stable Video Diffusion: 0..255)."""


class ClipModel(Model, Protocol):
    """A `Model` of clips of its usual length: latents [B,C,f,h,w], decoded to [B,3,F,H,W] in 0..1.

    Pictures that it needs or accepts are single frames [1 or B,3,H,W].
    """

    lengths: Lengths
    span: Span
    guide: Guidance | None
    """Its own guidance, where a number does not say it all."""

    def at(
        self, frames: int | None = None, *, fps: float | None = None, motion: float | None = None
    ) -> ClipModel:
        """The same model for clips of so many frames; what is None stays as it is."""
        ...

    def latent_shape(self, width: int, height: int, frames: int | None = None) -> tuple[int, ...]:
        """Shape of one latent [C,f,h,w], without the batch axis."""
        ...
