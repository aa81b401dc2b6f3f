"""attn-tile: attention over the tiles of tokens that matter, found by a search in each layer of the run itself.

Paper: arXiv:2502.06155 (Efficient-vDiT), sections 3.2 and 3.3; the error's bound is that of a truncated softmax
Shapes: q [B,heads,L,D], k and v [B,heads,S,D] of layers without a mask
Units and ranges: mass 0..1, share of a query's weight; tile 16, 32, 64 or 128 tokens; most 0 and up, tiles; every 0 and
    up, steps; smallest 1 and up, keys; dense 0..1, share of tiles
Cost: none; a search takes one dense attention and a pass over its weights, and one bit per pair of tiles is remembered
Neutral: mass = 1 (the network is left alone)
Errors: ValueError for a setting outside its range, or a network without the site 'attention'
Differs: there tiles are pairs of frames and each layer takes one of a few fixed patterns, searched beforehand on
    samples; here tiles are runs of tokens (one frame each, if `tile` fits), every head and tile of queries keeps the
    fewest that hold `mass`, and the search is repeated in the run. `most` makes the cost linear in tokens, as there.
    Nothing is left out outside the loop, or where more than `dense` of the tiles would be kept. Not distilled
Tasks: image, video
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...kernels.attention.tiles import attend, fewest, masses
from ..moment import Memory
from ..sites import Attend, Layer, attention, attention_modules
from ._reuse import remembering

_Found = dict[int, tuple[int, Tensor | None, tuple[int, ...]]]
"""Layer -> the step of its search, the tiles it keeps (None: all of them), and the shape for which they hold."""


@dataclass(frozen=True)
class AttnTile:
    """Skips tiles of attention that hold little weight."""

    slot: ClassVar[str] = "attention"

    mass: float = 0.95
    """Share of each tile of queries' weight that is kept, 0..1; 1 is off."""
    tile: int = 128
    """Tokens of a tile: 16, 32, 64 or 128."""
    most: int = 0
    """Tiles of keys that a tile of queries sees at most, which makes the cost linear in tokens; 0 sets no limit."""
    every: int = 10
    """Steps after which a layer is searched anew; 0 searches once per run."""
    smallest: int = 1024
    """Keys that a layer must have, 1 and up."""
    dense: float = 0.5
    """Share of tiles above which a layer is computed whole, 0..1: there skipping gains nothing."""

    def __post_init__(self) -> None:
        for name, value in (("mass", self.mass), ("dense", self.dense)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in 0..1, got {value}")
        for name, value, least in (
            ("most", self.most, 0),
            ("every", self.every, 0),
            ("smallest", self.smallest, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        if self.tile not in (16, 32, 64, 128):
            raise ValueError(f"tile must be 16, 32, 64 or 128, got {self.tile}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        attention_modules(net)
        if self.mass == 1:
            yield
            return
        memory: Memory[_Found] = Memory(dict)

        def compute(layer: Layer, q: Tensor, k: Tensor, v: Tensor, old: Attend) -> Tensor:
            branches, fits = memory.branches, k.shape[2] >= self.smallest and k.shape[:2] == q.shape[:2]
            if memory.step is None or not old.plain or not fits or len(q) % len(branches):
                return old(q, k, v)
            parts = zip(branches, *(t.chunk(len(branches)) for t in (q, k, v)), strict=True)
            out = [self._part(found, layer.index, memory.step.index, part, old) for found, *part in parts]
            return torch.cat(out) if len(out) > 1 else out[0]

        with remembering(net, memory), attention(net, compute):
            yield

    def _part(self, found: _Found, layer: int, step: int, part: list[Tensor], old: Attend) -> Tensor:
        """The rows of one condition: searched for what matters, or computed with what was found."""
        q, k, v = part
        shape = (*q.shape, k.shape[2])
        at, kept, fit = found.get(layer, (0, None, ()))
        if fit != shape or (self.every and step - at >= self.every):
            found[layer] = (step, self._search(q, k, old.scale), shape)
            return old(q, k, v)
        return old(q, k, v) if kept is None else attend(q, k, v, kept, old.scale, self.tile)

    def _search(self, q: Tensor, k: Tensor, scale: float | None) -> Tensor | None:
        """What each image keeps; all of it, where leaving tiles out would gain nothing. None if that holds for all."""
        kept = fewest(masses(q, k, self.tile, scale), self.mass, self.most)
        wide = kept.flatten(1).float().mean(1) > self.dense
        return None if bool(wide.all()) else kept | wide[:, None, None, None]
