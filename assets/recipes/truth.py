"""What the world knows about each token of a picture: normals, depth, and how much of it each shape and colour covers.

The alignment option draws hidden states towards it, see `partial.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..still_life.render import render
from ..still_life.scene import COLORS, SHAPES, Scene
from .fitting import best_device
from .pool import Pool

TOKEN = 16
"""Side of a token in pixels."""
FINE = 4
"""Rays along a token's side."""
WIDTH = FINE * FINE * 4 + len(SHAPES) + len(COLORS)
PIECE = 256


def truth(work: Path, data: Pool) -> Tensor:
    """[N,L,WIDTH] float16 of the L tokens of each picture, row by row; every channel has mean 0 and deviation 1."""
    file = work / f"crowded-truth-{len(data)}.pt"
    if not file.exists():
        side = data.images.shape[1] // TOKEN
        rows = [known(data.scenes[at : at + PIECE], side) for at in range(0, len(data), PIECE)]
        every = torch.cat(rows).flatten(0, 1)
        every = (every - every.mean(0)) / every.std(0).clamp_min(1e-3)
        torch.save(every.half().view(len(data), side * side, WIDTH).clone(), file)
    return torch.load(file, weights_only=True)


def known(scenes: Sequence[Scene], side: int) -> Tensor:
    """Normals, inverse depth (both at FINE x FINE points), shares of each shape and colour, [B, side * side, WIDTH]."""
    seen = render(scenes, size=side * FINE, maps=("depth", "normals", "ids"), device=best_device())
    assert seen.depth is not None and seen.normals is not None and seen.ids is not None
    most = max(len(s.things) for s in scenes)
    kinds = torch.zeros(len(scenes), 2 + most, len(SHAPES) + len(COLORS))
    for i, scene in enumerate(scenes):
        for k, thing in enumerate(scene.things):
            kinds[i, 2 + k, SHAPES.index(thing.shape)] = 1
            kinds[i, 2 + k, len(SHAPES) + list(COLORS).index(thing.color)] = 1
    ids = seen.ids[:, 0].cpu()
    covered = kinds.gather(1, ids.flatten(1)[..., None].expand(-1, -1, kinds.shape[2]))
    share = F.avg_pool2d(covered.transpose(1, 2).unflatten(2, ids.shape[1:]), FINE)
    form = F.pixel_unshuffle(torch.cat([seen.normals, 1 / seen.depth], 1).cpu(), FINE)
    return torch.cat([form, share], 1).flatten(2).transpose(1, 2)
