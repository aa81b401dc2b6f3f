"""Train the judge on its own renders (seeds that no generator sees), with pictures of nothing among them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ..still_life.judge import CELLS, PICTURE_HEADS, SIZE, THING_HEADS, Judge, nearest_relation, read, split
from ..still_life.scene import Scene
from .fitting import Fit, best_device, fit
from .muon import Muon, muon_groups
from .pool import Pool, pool

BATCH = 32
NOTHING = 4
"""Pictures of nothing in a batch."""
FIRST_SEED = 2_000_000
HELD_OUT_SEED = 3_000_000


def cells(scene: Scene) -> list[tuple[int, int]]:
    """Grid (row, column) of each thing's centre."""
    spots = []
    for thing in scene.things:
        u, v, _ = scene.camera.project(thing.position)
        column, row = ((w + 1) / 2 * CELLS for w in (u, v))
        spots.append((min(CELLS - 1, max(0, int(row))), min(CELLS - 1, max(0, int(column)))))
    return spots


def targets(scenes: list[Scene]) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Centre heat [B,16,16]; places of things [N,3] (image, row, column); their words; the pictures' words."""
    heat = torch.zeros(len(scenes), CELLS, CELLS)
    axis = torch.arange(CELLS)
    where: list[tuple[int, int, int]] = []
    words: dict[str, list[Any]] = {k: [] for k in [*THING_HEADS, "position"]}
    for i, scene in enumerate(scenes):
        for thing, (row, column) in zip(scene.things, cells(scene), strict=True):
            spread = torch.exp(-((axis[:, None] - row) ** 2 + (axis[None] - column) ** 2) / 1.2)
            heat[i] = torch.maximum(heat[i], spread)
            where.append((i, row, column))
            for head, names in THING_HEADS.items():
                words[head].append(names.index(getattr(thing, head)))
            words["position"].append(thing.position)
    picture = {h: torch.tensor([n.index(getattr(s, h)) for s in scenes]) for h, n in PICTURE_HEADS.items()}
    return heat, torch.tensor(where), {k: torch.tensor(v) for k, v in words.items()}, picture


def nothing(count: int, rng: torch.Generator) -> Tensor:
    """Pictures of nothing: noise, blank, blurred noise, gradients."""
    kind = torch.randint(5, (count,), generator=rng).tolist()
    out = []
    for k in kind:
        side = (SIZE, 1, 2, 2 ** int(torch.randint(2, 7, (), generator=rng)), SIZE)[k]
        small = torch.rand(1, 3, side, side, generator=rng)
        if k == 4:
            small = (torch.randn(1, 3, side, side, generator=rng) * 0.3 + 0.5).clamp(0, 1)
        image = F.interpolate(small, (SIZE, SIZE), mode="bilinear" if k != 3 else "nearest")
        grey = torch.rand((), generator=rng) < 0.3
        out.append(image.mean(1, keepdim=True).expand(1, 3, -1, -1) if grey else image)
    return torch.cat(out)


def roughen(x: Tensor, rng: torch.Generator) -> Tensor:
    """Small faults of generated pictures: blur, noise, brightness."""
    if torch.rand((), generator=rng) < 0.5:
        side = int(torch.randint(64, 128, (), generator=rng))
        x = F.interpolate(
            F.interpolate(x, (side, side), mode="bilinear", antialias=True), (SIZE, SIZE), mode="bilinear"
        )
    level = 0.05 * torch.rand(len(x), 1, 1, 1, generator=rng)
    gain = 1 + 0.08 * (torch.rand(len(x), 1, 1, 1, generator=rng) - 0.5)
    return (x * gain + level * torch.randn(x.shape, generator=rng)).clamp(0, 1)


def losses(net: Judge, x: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
    """Centre focal loss, words at the centres, place; pictures of nothing follow the scenes in x."""
    grid, picture = (scores.float() for scores in net(x))  # 1 - 1e-4 is 1 in bfloat16
    heat, where, words, wanted = targets(scenes)
    heat = torch.cat([heat, torch.zeros(len(x) - len(scenes), CELLS, CELLS)]).to(x.device)
    words, wanted = ({k: v.to(x.device) for k, v in w.items()} for w in (words, wanted))
    score = grid[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = heat > 0.999
    focal = torch.where(hit, (1 - score) ** 2 * score.log(), (1 - heat) ** 4 * score**2 * (1 - score).log())
    at = grid[where[:, 0], :, where[:, 1], where[:, 2]]
    parts = {h: F.cross_entropy(s, words[h]) for h, s in split(at, THING_HEADS, 4).items()}
    parts |= {
        h: F.cross_entropy(s, wanted[h]) for h, s in split(picture[: len(scenes)], PICTURE_HEADS, 1).items()
    }
    parts["centre"] = -focal.sum() / len(where)
    parts["place"] = F.smooth_l1_loss(at[:, 1:4], words["position"])
    known = torch.arange(len(x), device=x.device) < len(scenes)
    parts["known"] = F.binary_cross_entropy_with_logits(picture[:, 0], known.float())
    return {"loss": sum(parts.values()), **parts}


def measure(net: Judge, data: Pool) -> dict[str, float]:
    """Share right per attribute on renders; a thing that is not found is wrong in all of its attributes."""
    right = dict.fromkeys([*THING_HEADS, *PICTURE_HEADS, "relation", "count"], 0)
    total = dict.fromkeys(right, 0)
    for at in range(0, len(data), 64):
        index = torch.arange(at, min(at + 64, len(data)))
        for scene, reading in zip([data.scenes[i] for i in index], read(data.batch(index), net), strict=True):
            found = []
            for thing, (row, column) in zip(scene.things, cells(scene), strict=True):
                centre = ((column + 0.5) / CELLS, (row + 0.5) / CELLS)
                near = [
                    s for s in (reading.things if reading else ()) if math.dist(s.cell, centre) < 1.6 / CELLS
                ]
                seen = min(near, key=lambda s: math.dist(s.cell, centre)) if near else None
                found.append(seen)
                for head in THING_HEADS:
                    right[head] += seen is not None and getattr(seen, head) == getattr(thing, head)
                    total[head] += 1
            for head in PICTURE_HEADS:
                right[head] += reading is not None and getattr(reading, head) == getattr(scene, head)
                total[head] += 1
            for rel in scene.relations:
                a, b = found[rel.subject], found[rel.object]
                if a and b:
                    offset = (p - q for p, q in zip(a.position, b.position, strict=True))
                    right["relation"] += nearest_relation(*offset) == rel.relation
                total["relation"] += 1
            right["count"] += reading is not None and len(reading.things) == len(scene.things)
            total["count"] += 1
    return {k: round(right[k] / max(1, total[k]), 4) for k in right}


def train(work: Path, *, minutes: float, scenes: int = 30720, width: int = 24) -> Judge:
    """Train and save to `work/judge`: `judge.safetensors` (fp16), `config.json`, `report.json`."""
    data = pool(work, scenes, first_seed=FIRST_SEED)
    torch.manual_seed(2)
    place = best_device()
    net = Judge(width).to(place, memory_format=torch.channels_last)
    optimiser = Muon(muon_groups(net, plain=("stem", "things", "picture")), weight_decay=0.01)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        dice = torch.Generator().manual_seed(step)
        index = torch.randint(len(data), (BATCH,), generator=dice)
        x = torch.cat([roughen(data.batch(index), dice), nothing(NOTHING, dice)]).to(place)
        return losses(net, x.contiguous(memory_format=torch.channels_last), [data.scenes[i] for i in index])

    best = fit(net, optimiser, loss, Fit(minutes, lr=2e-3, ema=0.998, warmup=100), work / "judge-run").cpu()
    report = measure(best, pool(work, 512, split="test", first_seed=HELD_OUT_SEED))
    noise = read(nothing(256, torch.Generator().manual_seed(9)), best)
    report["nothing"] = round(sum(r is None for r in noise) / len(noise), 4)
    folder = work / "judge"
    folder.mkdir(exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in best.state_dict().items()}, folder / "judge.safetensors")
    (folder / "config.json").write_text(json.dumps({"width": width}) + "\n")
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(report, flush=True)
    return best
