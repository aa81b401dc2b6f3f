"""Exact optical flow between two states of a scene: surface points of one, followed to the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .render import pixels, rays
from .scene import Scene
from .shading import meet
from .tracing import Pack, dot, pack, take, turn

SLACK = 0.02
"""Relative distance by which a followed point may lie behind the first surface and still count as seen."""


class Flow(NamedTuple):
    pixels: Tensor
    """[2,H,W] displacement (right, down) of what pixel centres of `a` show, in pixels of `b`."""
    visible: Tensor
    """[1,H,W] bool: also seen in `b`, inside its frame and not behind something."""


def flow(
    a: Scene, b: Scene, *, size: int | tuple[int, int] = 128, device: str | torch.device = "cpu"
) -> Flow:
    """Where each pixel of scene `a` goes in scene `b`; both hold the same things in the same order.

    The sky is infinitely far. Points behind the second camera get a flow of 0 and are not visible.
    """
    if [t.shape for t in a.things] != [t.shape for t in b.things]:
        raise ValueError("flow needs the same things, in the same order, in both scenes")
    height, width = (size, size) if isinstance(size, int) else size
    target = torch.device(device)
    with torch.inference_mode():
        p, q = pack([a], target), pack([b], target)
        scene, x, y = pixels(1, height, width, target)
        o, d = rays(p, scene, x, y, (height, width))
        hits = meet(p, scene, o, d)
        far = hits.ids == 0
        to = _followed(p, q, hits.ids, o + torch.where(far, 1.0, hits.t) * d) - q.eye
        to = torch.where(far, d, to)
        u, v, ahead = _project(q, to, (height, width))
        inside = ahead & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        length = dot(to, to).sqrt()
        again = meet(q, scene, q.eye.expand_as(to), to / length)
        reached = torch.where(far, again.ids == 0, again.t >= length * (1 - SLACK))
        same = (again.ids == hits.ids) & reached
        moved = torch.where(ahead, torch.stack((u - x, v - y)), 0.0)
    out = moved.reshape(2, height, width).clone(), (inside & same).reshape(1, height, width).clone()
    return Flow(*out)


def _followed(p: Pack, q: Pack, ids: Tensor, points: Tensor) -> Tensor:
    """Points [3,R] that move with the things they lie on, from pack p to pack q (one scene each)."""
    thing = (ids - 2).clamp_min(0)
    local = turn(points - take(p.centre, thing), take(p.turn, thing)) / take(p.radius, thing)
    moved = turn(local * take(q.radius, thing), take(q.turn, thing), back=True) + take(q.centre, thing)
    return torch.where(ids > 1, moved, points)


def _project(q: Pack, to: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel position of vectors from the eye, and whether they lie ahead of the camera."""
    height, width = size
    x, y, z = (dot(to, q.axes[k].expand_as(to)) for k in range(3))
    ahead = z > 1e-6
    scale = min(height, width) / (2 * q.tan) / z.clamp_min(1e-6)
    return x * scale + width / 2, y * scale + height / 2, ahead
