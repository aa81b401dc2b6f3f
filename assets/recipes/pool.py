"""A pool of rendered scenes on disk: rendered once, in pieces, then shared by every recipe.

`images.npy` is uint8 [N,H,W,3], `scenes.jsonl` has one scene a line. A pool that is cut short goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..still_life.render import render
from ..still_life.sampling import SHARES, sample_scene
from ..still_life.scene import Scene
from .fitting import best_device

PIECE = 64
CROWDED = (20, 40, 40)
"""How often the generators' scenes hold one, two and three things: placing several is what takes longest to learn."""


@dataclass(frozen=True)
class Pool:
    """`images` uint8 [N,H,W,3] (a memory map) and the scenes they show."""

    images: np.ndarray
    scenes: list[Scene]

    def batch(self, index: Tensor) -> Tensor:
        """Images [B,3,H,W] in 0..1 on the index's device."""
        picked = torch.from_numpy(self.images[index.cpu().numpy()]).to(index.device)
        return picked.permute(0, 3, 1, 2).float().div_(255)

    def __len__(self) -> int:
        return len(self.scenes)


def plain(scenes: list[Scene], size: int) -> Tensor:
    """Renders [B,3,H,W] on the best device."""
    rgb = render(scenes, size=size, device=best_device()).rgb
    assert rgb is not None  # asked for by default
    return rgb


Draw = Callable[[list[Scene], list[int]], Tensor]
"""(scenes, seeds) -> the pictures [B,3,H,W] in 0..1 that a pool keeps of them."""


def pool(
    folder: Path,
    count: int,
    *,
    split: str = "train",
    size: int = 128,
    first_seed: int = 0,
    name: str = "",
    shares: tuple[int, int, int] = SHARES,
    draw: Draw | None = None,
) -> Pool:
    """Render what is missing of `count` scenes with seeds first_seed, first_seed + 1, ... and open the pool.

    A pool of other pictures than plain renders has a `name` and says how to `draw` them; one of other scenes than most
    has a `name` and its own `shares` of one, two and three things.
    """
    folder = folder / f"{name or split}-{size}-{count}-{first_seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data, listing = folder / "images.npy", folder / "scenes.jsonl"
    if not data.exists():
        np.lib.format.open_memmap(data, "w+", np.uint8, (count, size, size, 3)).flush()
        listing.write_text("")
    lines = listing.read_text().splitlines()
    done = len(lines) // PIECE * PIECE
    if done < count:
        begin = time.monotonic()
        images = np.lib.format.open_memmap(data, "r+")
        listing.write_text("".join(line + "\n" for line in lines[:done]))
        for at in range(done, count, PIECE):
            stop = min(at + PIECE, count)
            seeds = [first_seed + i for i in range(at, stop)]
            scenes = [sample_scene(seed, split=split, shares=shares) for seed in seeds]
            rgb = draw(scenes, seeds) if draw else plain(scenes, size)
            images[at:stop] = rgb.mul(255).round_().byte().permute(0, 2, 3, 1).cpu().numpy()
            with listing.open("a") as out:
                out.writelines(json.dumps(s.to_dict()) + "\n" for s in scenes)
        rate = (count - done) / (time.monotonic() - begin)
        print({"pool": str(folder.name), "scenes_per_second": round(rate, 1)}, flush=True)
    scenes = [Scene.from_dict(json.loads(line)) for line in listing.read_text().splitlines()]
    return Pool(np.load(data, mmap_mode="r"), scenes)


def crowded(folder: Path, count: int) -> Pool:
    """What the generators learn from: scenes of the train split, most of two and three things."""
    return pool(folder, count, name="crowded", shares=CROWDED)
