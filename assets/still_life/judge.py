"""The judge: a small network, trained apart from the generators, that reads a picture back into words.

It looks for things on a 16 x 16 grid (a score for "the centre of a thing is here", as in arXiv:1904.07850) and reads
shape, colour, material, size and place at each of them; setting and light are read from the whole picture. A separate
score says whether the picture is of this world at all: noise and blank pictures get no reading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .scene import COLORS, LIGHT_COLORS, LIGHT_DIRECTIONS, MATERIALS, SETTINGS, SHAPES, SIZES

SIZE = 128
CELLS = 16
THING_HEADS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "material": MATERIALS,
    "size": tuple(SIZES),
}
PICTURE_HEADS: dict[str, tuple[str, ...]] = {
    "setting": SETTINGS,
    "light_direction": LIGHT_DIRECTIONS,
    "light_color": LIGHT_COLORS,
}
FOUND = 0.35
"""Least centre score of a thing."""
KNOWN = 0.5
"""Least score of a picture of this world."""
FOLDER = Path(__file__).parent.parent / "models" / "judge"


class Seen(NamedTuple):
    """One thing as the judge reads it; `position` in world units, `cell` (x, y) in 0..1 of the picture."""

    shape: str
    color: str
    material: str
    size: str
    position: tuple[float, float, float]
    cell: tuple[float, float]
    score: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows, things from the surest to the least sure."""

    things: tuple[Seen, ...]
    setting: str
    light_direction: str
    light_color: str


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, outside), nn.GroupNorm(8, outside)])
        same = inside == outside and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norms[0](self.first(x)))
        return F.silu(self.norms[1](self.second(h)) + self.skip(x))


class Judge(nn.Module):
    """Pictures [B,3,128,128] in 0..1 to raw scores: see `forward`."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * width, 6, 4, 1)
        self.local = nn.Sequential(
            Block(2 * width, 2 * width),
            Block(2 * width, 2 * width),
            Block(2 * width, 4 * width, 2),
            Block(4 * width, 4 * width),
        )
        self.wide = nn.Sequential(Block(4 * width, 6 * width, 2), Block(6 * width, 6 * width))
        self.join = Block(10 * width, 4 * width)
        self.things = nn.Conv2d(4 * width, 1 + 3 + sum(map(len, THING_HEADS.values())), 1)
        nn.init.constant_(self.things.bias[:1], -4.0)  # centres are rare
        self.picture = nn.Linear(12 * width, 1 + sum(map(len, PICTURE_HEADS.values())))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Grid scores [B,28,16,16] (centre, x, y, z, shape, color, material, size) and picture scores [B,13]."""
        local = self.local(F.silu(self.stem(x * 2 - 1)))
        wide = self.wide(local)
        near = F.interpolate(wide, scale_factor=2.0, mode="nearest")
        grid = self.things(self.join(torch.cat([local, near], 1)))
        return grid, self.picture(torch.cat([wide.mean((2, 3)), wide.amax((2, 3))], 1))


def split(scores: Tensor, heads: dict[str, tuple[str, ...]], skip: int) -> dict[str, Tensor]:
    """The scores of each head, from channel `skip` on (dim 1)."""
    parts = scores[:, skip:].split([len(names) for names in heads.values()], 1)
    return dict(zip(heads, parts, strict=True))


@lru_cache(maxsize=1)
def judge() -> Judge:
    """The built-in judge."""
    width = json.loads((FOLDER / "config.json").read_text())["width"]
    net = Judge(width)
    net.load_state_dict({k: v.float() for k, v in load_file(FOLDER / "judge.safetensors").items()})
    return net.eval().requires_grad_(False)


def read(images: Tensor, net: Judge | None = None) -> list[Reading | None]:
    """Read pictures [B,3,H,W] in 0..1; None where a picture is none of this world."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B,3,H,W], got {list(images.shape)}")
    if images.shape[2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
    net = net or judge()
    readings: list[Reading | None] = []
    with torch.inference_mode():
        for piece in images.split(64):
            grid, picture = net(piece.float())
            readings += [_reading(g, p) for g, p in zip(grid, picture, strict=True)]
    return readings


def _best(scores: dict[str, Tensor]) -> dict[str, str]:
    names = THING_HEADS | PICTURE_HEADS
    return {head: names[head][int(s.flatten().argmax())] for head, s in scores.items()}


def _reading(grid: Tensor, picture: Tensor) -> Reading | None:
    if float(picture[0].sigmoid()) < KNOWN:
        return None
    centre = grid[0].sigmoid()
    peak = centre == F.max_pool2d(centre[None, None], 3, 1, 1)[0, 0]
    spots = torch.nonzero(peak & (centre > FOUND)).tolist()
    if not spots:
        return None
    things = []
    for row, column in sorted(spots, key=lambda s: -float(centre[s[0], s[1]]))[:4]:
        at = grid[:, row, column][None]
        x, y, z = at[0, 1:4].tolist()
        words = _best(split(at, THING_HEADS, 4))
        cell = ((column + 0.5) / CELLS, (row + 0.5) / CELLS)
        things.append(Seen(**words, position=(x, y, z), cell=cell, score=float(centre[row, column])))
    return Reading(tuple(things), **_best(split(picture[None], PICTURE_HEADS, 1)))


def related(a: Seen, relation: str, b: Seen) -> bool:
    """Whether `a` stands in `relation` to `b`, from the places that the judge read."""
    dx, dy, dz = (p - q for p, q in zip(a.position, b.position, strict=True))
    return relation == nearest_relation(dx, dy, dz)


def nearest_relation(dx: float, dy: float, dz: float) -> str:
    """The relation of a thing at an offset (right, away, up) in world units from another."""
    if dz > 0.45 and dz > 1.2 * (dx * dx + dy * dy) ** 0.5:
        return "on top of"
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "in front of" if dy < 0 else "behind"
