"""Scenes as tensors, and rays against them: sphere tracing of flat ray lists.

Vectors are component-first, [3,R]. Things live in slots: slot k of scene b is thing
b * slots + k; empty slots have bound2 = -1 and are never hit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .scene import COLORS, FORMS, MATERIALS, SETTINGS, SHAPES, Scene
from .sdf import SDFS, gradient

EPS = 1.5e-3
"""Hit distance in object units (a fraction of the thing's radius)."""
BLOCKS, STEPS = 9, 4
"""March at most BLOCKS * STEPS steps; finished rays leave after each block."""
SHADOW_HARDNESS = 11.0
"""Penumbra: a ray that passes at distance s after travelling t gets min(1, hardness * s / t)."""
HOLLOW = ("torus", "mug")
"""Shapes that can cast a shadow on their own lit side."""


class Pack(NamedTuple):
    """A batch of scenes on one device; T = B * slots things."""

    slots: int
    centre: Tensor  # [3,T]
    radius: Tensor  # [T]
    bound2: Tensor  # [T] squared bounding radius, -1 where empty
    turn: Tensor  # [2,T] cosine and sine of yaw
    shape: Tensor  # [T] index into SHAPES
    color: Tensor  # [3,T] linear RGB
    material: Tensor  # [T]
    eye: Tensor  # [3,B]
    axes: Tensor  # [3,3,B] camera axis, world component
    tan: Tensor  # [B] tangent of half the field of view
    setting: Tensor  # [B]
    dusk: Tensor  # [B] 0..1
    light: Tensor  # [3,B] unit vector towards the key light
    tint: Tensor  # [3,B]
    phase: Tensor  # [B] radians, varies textures


class Hits(NamedTuple):
    t: Tensor  # [R] distance along the ray, inf on a miss
    thing: Tensor  # [R] thing index, -1 on a miss


LIGHT_VECTORS = {"left": (-0.78, -0.36, 0.60), "right": (0.78, -0.36, 0.60), "front": (0.06, -0.80, 0.66)}
LIGHT_TINTS = {"neutral": (1.0, 1.0, 1.0), "warm": (1.16, 0.93, 0.56), "cool": (0.76, 0.95, 1.26)}


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for x >= 0. torch's own power (and atan2) rounds by an element's place in memory, and so
    by the number of threads; the logarithm does not."""
    return x.clamp_min(1e-8).log().mul(exponent).exp()


def linear(srgb: Tensor) -> Tensor:
    """sRGB 0..1 to linear light."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, power((srgb + 0.055) / 1.055, 2.4))


def pack(scenes: Sequence[Scene], device: torch.device) -> Pack:
    """Tables for a batch of scenes."""
    slots = max((1, *(len(s.things) for s in scenes)))
    rows: list[list[float]] = []
    for s in scenes:
        for t in s.things:
            bound = FORMS[t.shape].bound * t.radius
            rgb = [c / 255 for c in COLORS[t.color]]
            numbers = [SHAPES.index(t.shape), MATERIALS.index(t.material)]
            rows.append(
                [*t.position, t.radius, bound * bound, math.cos(t.yaw), math.sin(t.yaw), *rgb, *numbers]
            )
        rows += [[0, 0, 0, 1, -1, 1, 0, 0, 0, 0, 0, 0]] * (slots - len(s.things))
    table = torch.tensor(rows, dtype=torch.float32).t().contiguous().to(device)
    cams = [s.camera for s in scenes]
    light = torch.tensor([LIGHT_VECTORS[s.light_direction] for s in scenes]).t().contiguous()
    indices = torch.tensor([SETTINGS.index(s.setting) for s in scenes])
    phase = torch.tensor([(s.seed * 0.618034) % 1.0 * 2 * math.pi for s in scenes])
    return Pack(
        slots,
        table[0:3],
        table[3],
        table[4],
        table[5:7],
        table[10].long(),
        linear(table[7:10]),
        table[11].long(),
        torch.tensor([c.position for c in cams]).t().contiguous().to(device),
        torch.tensor([c.axes() for c in cams]).permute(1, 2, 0).contiguous().to(device),
        torch.tensor([math.tan(math.radians(c.fov_deg) / 2) for c in cams]).to(device),
        indices.to(device),
        torch.tensor([float(s.dusk) for s in scenes]).to(device),
        (light / light.square().sum(0).sqrt()).to(device),
        torch.tensor([LIGHT_TINTS[s.light_color] for s in scenes]).t().contiguous().to(device),
        phase.to(device),
    )


def take(values: Tensor, index: Tensor) -> Tensor:
    """values[..., index]; on CPUs several times as fast as indexing."""
    return values.index_select(-1, index)


def spread(values: Tensor, scene: Tensor, area: int) -> Tensor:
    """values[..., scene]; quicker where each scene has `area` rays in a row, 0 where rays are in any order."""
    return values.repeat_interleave(area, -1) if area else take(values, scene)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of component-first vectors, [3,R] -> [R]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def turn(v: Tensor, cs: Tensor, back: bool = False) -> Tensor:
    """World to object axes (or back) by yaw; cs [2,R]."""
    c, s = cs[0], -cs[1] if back else cs[1]
    return torch.stack((c * v[0] + s * v[1], c * v[1] - s * v[0], v[2]))


class Spans(NamedTuple):
    """Rays that cross a bounding sphere, sorted by nothing in particular."""

    ray: Tensor  # [Q] index into the ray list
    thing: Tensor  # [Q]
    near: Tensor  # [Q] world distance, may be negative
    far: Tensor  # [Q]


def spans(p: Pack, scene: Tensor, o: Tensor, d: Tensor, *, grow: float = 0.0, area: int = 0) -> Spans:
    """Which rays (of `scene` [R]) cross which bounding spheres, enlarged by `grow`."""
    parts: list[Spans] = []
    bound2 = torch.where(p.bound2 > 0, (p.bound2.clamp_min(0).sqrt() + grow).square(), p.bound2)
    for slot in range(p.slots):
        ids = torch.arange(slot, p.bound2.numel(), p.slots, device=o.device)
        centre, limit = take(p.centre, ids), take(bound2, ids)
        oc = o - spread(centre, scene, area)
        b = dot(oc, d)
        disc = b * b - dot(oc, oc) + spread(limit, scene, area)
        ray = torch.nonzero((disc > 0) & (disc.clamp_min(0).sqrt() > b)).flatten()
        if not ray.numel():
            continue
        half = take(disc, ray).sqrt()
        parts.append(Spans(ray, take(ids, take(scene, ray)), -take(b, ray) - half, half - take(b, ray)))
    if not parts:
        none = torch.zeros(0, dtype=torch.long, device=o.device)
        return Spans(none, none, none.float(), none.float())
    return Spans(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _groups(p: Pack, thing: Tensor) -> list[tuple[int, Tensor]]:
    """(shape index, members) of a list of thing indices."""
    shape = take(p.shape, thing)
    order = torch.argsort(shape, stable=True)
    counts = torch.bincount(shape, minlength=len(SHAPES)).tolist()
    pieces = torch.split(order, counts)
    return [(k, piece) for k, piece in enumerate(pieces) if counts[k]]


def _march(shape: int, o: Tensor, d: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Distance to the first surface in object units, inf on a miss."""
    sdf = SDFS[shape]
    out = torch.full_like(near, torch.inf)
    index = torch.arange(near.numel(), device=near.device)
    t = near
    for _ in range(BLOCKS):
        for _ in range(STEPS):
            s = sdf(torch.addcmul(o, d, t))
            t = t + s
        hit = s < EPS
        done = torch.nonzero(hit).flatten()
        out[take(index, done)] = take(t, done)
        keep = torch.nonzero(~hit & (t < far)).flatten()
        if not keep.numel():
            return out
        index, o, d, t, far = take(index, keep), take(o, keep), take(d, keep), take(t, keep), take(far, keep)
    return out


def trace(p: Pack, scene: Tensor, o: Tensor, d: Tensor, area: int = 0) -> Hits:
    """Nearest thing along each ray."""
    q = spans(p, scene, o, d, area=area)
    best = torch.full_like(d[0], torch.inf)
    thing = torch.full_like(scene, -1)
    found = torch.full_like(q.near, torch.inf)
    for shape, m in _groups(p, q.thing):
        k, ray = take(q.thing, m), take(q.ray, m)
        r, cs = take(p.radius, k), take(p.turn, k)
        local = turn(take(o, ray) - take(p.centre, k), cs) / r
        found[m] = (
            _march(shape, local, turn(take(d, ray), cs), take(q.near, m).clamp_min(0) / r, take(q.far, m) / r)
            * r
        )
    best.scatter_reduce_(0, q.ray, found, "amin")
    won = torch.nonzero((found < torch.inf) & (found == take(best, q.ray))).flatten()
    thing[take(q.ray, won)] = take(q.thing, won)
    return Hits(best, thing)


def normals(p: Pack, thing: Tensor, points: Tensor) -> Tensor:
    """Outward unit normals [3,R] in world axes at surface points."""
    out = torch.empty_like(points)
    for shape, m in _groups(p, thing):
        k = take(thing, m)
        cs = take(p.turn, k)
        local = turn(take(points, m) - take(p.centre, k), cs) / take(p.radius, k)
        out[:, m] = turn(gradient(SDFS[shape], local), cs, back=True)
    return out


def shadow(p: Pack, scene: Tensor, points: Tensor, own: Tensor) -> Tensor:
    """Share of the key light that arrives, [R] in 0..1. `own` is the thing each point lies on, or -1."""
    d = take(p.light, scene)
    q = spans(p, scene, points, d, grow=0.15)
    hollow = torch.tensor([s in HOLLOW for s in SHAPES], device=points.device)
    keep = torch.nonzero((q.thing != take(own, q.ray)) | take(hollow, take(p.shape, q.thing))).flatten()
    q = Spans(*(take(column, keep) for column in q))
    lit = torch.ones_like(points[0])
    share = torch.ones_like(q.near)
    for shape, m in _groups(p, q.thing):
        k, ray = take(q.thing, m), take(q.ray, m)
        r, cs = take(p.radius, k), take(p.turn, k)
        local = turn(take(points, ray) - take(p.centre, k), cs) / r
        start = torch.where(k == take(own, ray), 0.06, 0.01) / r
        share[m] = _penumbra(
            shape,
            local,
            turn(take(d, ray), cs),
            torch.maximum(take(q.near, m) / r, start),
            take(q.far, m) / r,
        )
    # Distinct shadows overlap by the darkest.
    return lit.scatter_reduce_(0, q.ray, share, "amin")


def _penumbra(shape: int, o: Tensor, d: Tensor, t: Tensor, far: Tensor) -> Tensor:
    sdf = SDFS[shape]
    out = torch.ones_like(t)
    index = torch.arange(t.numel(), device=t.device)
    low = torch.ones_like(t)
    for _ in range(BLOCKS):
        for _ in range(3):
            s = sdf(torch.addcmul(o, d, t))
            low = torch.minimum(low, SHADOW_HARDNESS * s / t)
            t = t + s.clamp_min(0.03)
        out[index] = low
        keep = torch.nonzero((low > 0.02) & (t < far)).flatten()
        if not keep.numel():
            break
        index, o, d, t = take(index, keep), take(o, keep), take(d, keep), take(t, keep)
        far, low = take(far, keep), take(low, keep)
    out = out.clamp(0, 1)
    return out * out * (3 - 2 * out)
