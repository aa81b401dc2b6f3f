"""Pictures and exact ground truth of scenes, by sphere tracing in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .scene import Scene
from .shading import Samples, shade
from .surroundings import looks_of
from .tracing import Pack, dot, pack, spread, take

FAR = 100.0
"""Depth written for the sky, world units."""
MAPS = ("rgb", "depth", "normals", "ids", "lines")
EDGE = 0.07
"""Pixels whose colour differs from a neighbour's by more than this are drawn with 4 samples."""
CHUNK_PIXELS = {"cpu": 1 << 19, "cuda": 1 << 22}
"""Rays traced at once, which bounds the memory."""


@dataclass(frozen=True)
class Truth:
    """What `render` returns; maps that were not asked for are None."""

    rgb: Tensor | None
    """[B,3,H,W] sRGB, 0..1."""
    depth: Tensor | None
    """[B,1,H,W] metric z along the camera's forward axis; `FAR` for the sky."""
    normals: Tensor | None
    """[B,3,H,W] unit, camera axes (x right, y down, z forward); 0 for the sky."""
    ids: Tensor | None
    """[B,1,H,W] int64: 0 sky, 1 ground, 2 + i for `things[i]`."""
    lines: Tensor | None
    """[B,1,H,W] line art, 0 on outlines and creases, 1 elsewhere."""
    boxes: list[Tensor]
    """Per scene [N,4] pixel x0 y0 x1 y1 of the visible part (ends exclusive), 0 where hidden; on the CPU."""

    @property
    def masks(self) -> list[Tensor]:
        """Per scene [N,H,W] bool, True where thing i is visible; needs the map "ids"."""
        if self.ids is None:
            raise ValueError('masks are made from ids: render with maps=("ids", ...)')
        each = zip(self.ids, self.boxes, strict=True)
        return [
            ids == torch.arange(2, 2 + len(boxes), device=ids.device)[:, None, None] for ids, boxes in each
        ]


def render(
    scenes: Sequence[Scene],
    *,
    size: int | tuple[int, int] = 128,
    maps: Sequence[str] = ("rgb",),
    device: str | torch.device = "cpu",
) -> Truth:
    """Draw scenes at a square size or (height, width). Depth, ids and normals are those of pixel centres."""
    if unknown := [m for m in maps if m not in MAPS]:
        raise ValueError(f"unknown maps {unknown}; known: {', '.join(MAPS)}")
    if not scenes:
        raise ValueError("scenes must not be empty")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 2:
        raise ValueError(f"size must be at least 2, got {size}")
    target = torch.device(device)
    step = max(1, CHUNK_PIXELS["cpu" if target.type == "cpu" else "cuda"] // (height * width))
    parts: list[dict[str, Tensor]] = []
    with torch.inference_mode():
        for start in range(0, len(scenes), step):
            parts.append(_chunk(pack(scenes[start : start + step], target), height, width, maps))
    # Outside inference mode, so that callers may train on the result.
    full = {m: torch.cat([part[m] for part in parts]) for m in {*maps, "ids"}}
    boxes = _boxes(full["ids"], [len(s.things) for s in scenes])
    wanted = {m: full[m] if m in maps else None for m in MAPS}
    return Truth(wanted["rgb"], wanted["depth"], wanted["normals"], wanted["ids"], wanted["lines"], boxes)


def rays(
    p: Pack, scene: Tensor, x: Tensor, y: Tensor, size: tuple[int, int], area: int = 0
) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [3,R] through pixel positions x, y (centres at +0.5)."""
    height, width = size
    scale = p.tan * 2 / min(height, width)
    right, down = spread(p.axes[0] * scale, scene, area), spread(p.axes[1] * scale, scene, area)
    d = spread(p.axes[2], scene, area) + (x - width / 2) * right + (y - height / 2) * down
    return spread(p.eye, scene, area), d * dot(d, d).rsqrt()


def pixels(count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Scene, x and y [R] of every pixel centre of `count` pictures."""
    scene = torch.arange(count, device=device).repeat_interleave(height * width)
    x = torch.arange(width, device=device).float().add(0.5).repeat(count * height)
    y = torch.arange(height, device=device).float().add(0.5).repeat_interleave(width).repeat(count)
    return scene, x, y


def _chunk(p: Pack, height: int, width: int, maps: Sequence[str]) -> dict[str, Tensor]:
    count, device = p.setting.numel(), p.setting.device
    area, looks = height * width, looks_of(p)
    scene, x, y = pixels(count, height, width, device)
    o, d = rays(p, scene, x, y, (height, width), area)
    seen = shade(p, looks, scene, o, d, area=area)
    grid = (count, 1, height, width)
    out = {"ids": seen.ids.reshape(grid)}
    if "rgb" in maps:
        rgb = _smoothed(p, looks, seen, (scene, x, y), (height, width))
        out["rgb"] = rgb.reshape(3, count, height, width).transpose(0, 1).contiguous()
    if "depth" in maps or "lines" in maps:
        depth = torch.where(seen.ids > 0, seen.t * dot(d, spread(p.axes[2], scene, area)), FAR)
        out["depth"] = depth.reshape(grid)
    if "normals" in maps or "lines" in maps:
        camera = torch.stack([dot(seen.normal, take(p.axes[k], scene)) for k in range(3)])
        out["normals"] = camera.reshape(3, count, height, width).transpose(0, 1).contiguous()
    if "lines" in maps:
        out["lines"] = _lines(out["ids"], out["depth"], out["normals"])
    return out


def _smoothed(
    p: Pack, looks: Tensor, seen: Samples, where: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]
) -> Tensor:
    """Colours [3,R] with the edge pixels replaced by the mean of four samples."""
    rgb = seen.rgb.clamp(0, 1)
    count = p.setting.numel()
    image = rgb.reshape(3, count, *size).transpose(0, 1)
    ids = seen.ids.reshape(count, 1, *size)
    edge = _contrast(image) > EDGE
    edge |= _contrast(ids.float()) > 0
    m = torch.nonzero(edge.flatten()).flatten()
    if not m.numel():
        return rgb
    scene, x, y = (take(w, m) for w in where)
    dx = x.new_tensor([[-0.125], [0.375], [-0.375], [0.125]])
    dy = x.new_tensor([[-0.375], [-0.125], [0.125], [0.375]])
    scene4 = scene.repeat(4)
    o, d = rays(p, scene4, (x + dx).flatten(), (y + dy).flatten(), size)
    fine = shade(p, looks, scene4, o, d).rgb.clamp(0, 1).reshape(3, 4, -1)
    rgb[:, m] = fine.mean(1)
    return rgb


def _contrast(image: Tensor) -> Tensor:
    """Greatest absolute difference of any channel to the four neighbours, [B,C,H,W] -> [B,1,H,W]."""
    right = (image[..., :, 1:] - image[..., :, :-1]).abs().amax(1, keepdim=True)
    down = (image[..., 1:, :] - image[..., :-1, :]).abs().amax(1, keepdim=True)
    out = torch.zeros_like(image[:, :1])
    for part, step in (
        (out[..., :-1], right),
        (out[..., 1:], right),
        (out[..., :-1, :], down),
        (out[..., 1:, :], down),
    ):
        part.copy_(torch.maximum(part, step))
    return out


def _lines(ids: Tensor, depth: Tensor, normals: Tensor) -> Tensor:
    """0 where ids, depth or normals jump between a pixel and its left or upper neighbour."""
    ink = torch.zeros_like(depth, dtype=torch.bool)
    for axis in (2, 3):
        n = ids.shape[axis] - 1
        i0, i1 = ids.narrow(axis, 0, n), ids.narrow(axis, 1, n)
        z0, z1 = depth.narrow(axis, 0, n), depth.narrow(axis, 1, n)
        bend = (normals.narrow(axis, 0, n) * normals.narrow(axis, 1, n)).sum(1, keepdim=True)
        same = (i0 == i1) & (i1 > 1)
        jump = (
            (i0 != i1)
            | (same & ((z0 - z1).abs() > 0.12 * torch.minimum(z0, z1) / 4))
            | (same & (bend < 0.75))
        )
        ink.narrow(axis, 1, n).logical_or_(jump)
    fine = min(ids.shape[2:]) < 192
    return 1.0 - (
        ink.float() if fine else max_pool2d(ink.float(), 2, 1, 1)[..., : ids.shape[2], : ids.shape[3]]
    )


def _boxes(ids: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Boxes of the visible pixels of each thing, from id maps [B,1,H,W]; on the CPU."""
    rows: list[Tensor] = []
    for k in range(max((1, *counts))):
        mask = ids[:, 0] == k + 2
        sides: list[Tensor] = []
        for dim in (1, 2):
            line = mask.any(dim).int()
            first, last = line.argmax(1), line.shape[1] - line.flip(1).argmax(1)
            sides += [first, torch.where(line.any(1), last, 0)]
        rows.append(torch.stack((sides[0], sides[2], sides[1], sides[3]), 1))
    corners = torch.stack(rows, 1).float().cpu()
    return [row[:count].clone() for row, count in zip(corners, counts, strict=True)]
