"""Pictures decoded and encoded in overlapping tiles, blended where they overlap: memory of one tile at any size.

Each tile is normalised by its own mean and variance, so tiles differ a little in colour and contrast from the whole
pass, and `overlap` spreads these differences into ramps. `stripes.py` has no such differences, and costs more memory.
A picture of no more than one tile goes through whole, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .families._common import Checkpoint, Coder
from .protocols import Model
from .stopping import poll
from .stripes import stripe

WAYS = ("whole", "stripes", "tiles")
"""How an autoencoder goes over a picture."""


@dataclass(frozen=True)
class Tiled:
    """A coder in tiles. Latents [...,h,w]; sizes in latent cells."""

    coder: Coder
    tile: int = 64
    """Side of a tile, 1 and up."""
    overlap: int = 16
    """Cells that neighbours share, 0..tile - 1."""

    def __post_init__(self) -> None:
        if self.tile < 1 or not 0 <= self.overlap < self.tile:
            raise ValueError(
                f"tile must be 1 or more and overlap in 0..tile - 1, got {self.tile}, {self.overlap}"
            )

    @property
    def vae(self) -> Any:
        return self.coder.vae

    @property
    def factor(self) -> int:
        return self.coder.factor

    @property
    def channels(self) -> int:
        return self.coder.channels

    def decode(self, latents: Tensor) -> Tensor:
        return self._blended(latents, self.coder.decode, 1, self.factor)

    def encode(self, images: Tensor) -> Tensor:
        return self._blended(images, self.coder.encode, self.factor, 1)

    def _blended(self, x: Tensor, act: Callable[[Tensor], Tensor], into: int, out: int) -> Tensor:
        """act over tiles of x, whose cells take `into` places there and `out` places in the result."""
        height, width = x.shape[-2] // into, x.shape[-1] // into
        if max(height, width) <= self.tile:
            return act(x)
        whole, total = torch.zeros(()), torch.zeros(())
        for top, bottom in self.spans(height):
            for left, right in self.spans(width):
                poll()
                part = act(x[..., top * into : bottom * into, left * into : right * into])
                weight = (
                    self._ramp(top, bottom, height, out)[:, None] * self._ramp(left, right, width, out)
                ).to(part)
                if whole.ndim == 0:
                    whole = part.new_zeros(*part.shape[:-2], height * out, width * out)
                    total = whole.new_zeros(height * out, width * out)
                place = (..., slice(top * out, bottom * out), slice(left * out, right * out))
                whole[place] += part * weight
                total[place] += weight
        return whole / total

    def spans(self, length: int) -> list[tuple[int, int]]:
        """First and last-but-one cell of each tile along an axis, evenly spread."""
        if length <= self.tile:
            return [(0, length)]
        count = -(-(length - self.overlap) // (self.tile - self.overlap))
        firsts = [round(i * (length - self.tile) / (count - 1)) for i in range(count)]
        return [(first, first + self.tile) for first in firsts]

    def _ramp(self, first: int, last: int, length: int, out: int) -> Tensor:
        """Weights along an axis: rising and falling over the overlap, flat at the picture's own edges."""
        at = torch.arange((last - first) * out, dtype=torch.float32) + 0.5
        rise, reach = torch.ones_like(at), max(1, self.overlap * out)
        if first > 0:
            rise = torch.minimum(rise, at / reach)
        if last < length:
            rise = torch.minimum(rise, at.flip(0) / reach)
        return rise


def coded(model: Model, way: str) -> Model:
    """The model, its autoencoder working so from now on: whole, in stripes, or in tiles (of stripes)."""
    _set(_checkpoint(model, way), way)
    return model


@contextmanager
def working(model: Model, way: str) -> Iterator[Coder]:
    """The model's autoencoder working so inside this block."""
    checkpoint = _checkpoint(model, way)
    before = _way(checkpoint)
    _set(checkpoint, way)
    try:
        yield checkpoint.codec
    finally:
        _set(checkpoint, before)


def _checkpoint(model: Model, way: str) -> Checkpoint:
    if way not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}, got {way!r}")
    if not isinstance(model, Checkpoint):
        raise ValueError(f"{type(model).__name__} has no autoencoder that could work in {way}")
    return model


_STRIPED: WeakKeyDictionary[nn.Module, Callable[[], None]] = WeakKeyDictionary()
"""Autoencoders that go in stripes, and what undoes it."""


def _way(model: Checkpoint) -> str:
    if isinstance(model.codec, Tiled):
        return "tiles"
    return "stripes" if model.codec.vae in _STRIPED else "whole"


def _set(model: Checkpoint, way: str) -> None:
    codec = model.codec.coder if isinstance(model.codec, Tiled) else model.codec
    vae = codec.vae
    if way == "whole" and vae in _STRIPED:
        _STRIPED.pop(vae)()
    elif way != "whole" and vae not in _STRIPED:
        _STRIPED[vae] = stripe(vae)
    model.codec = Tiled(codec) if way == "tiles" else codec
