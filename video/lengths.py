"""Is this a number of frames that a model takes? A refusal names the nearest that are."""

from __future__ import annotations

from ..pipelines.errors import BadInput
from ..pipelines.sizes import check_count
from .protocols import Lengths


def check_frames(frames: int, lengths: Lengths) -> None:
    check_count("frames", frames)
    over = (frames - 1) % lengths.every
    if over:
        near = f"{frames - over} or {frames - over + lengths.every}"
        raise BadInput("frames", f"frames = {frames} must be {lengths.every} k + 1; nearest: {near}")
