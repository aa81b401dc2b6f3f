"""Colours of rays: lit ground, things of three materials, sky. Linear inside, sRGB out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .scene import MATERIALS
from .surroundings import GROUND_RADIUS, ground, mirror, sky, smooth
from .tracing import Pack, dot, normals, power, shadow, take, trace


class Samples(NamedTuple):
    """What R rays see."""

    rgb: Tensor  # [3,R] sRGB 0..1
    t: Tensor  # [R] distance along the ray, inf for sky
    ids: Tensor  # [R] 0 sky, 1 ground, 2 + slot for things
    normal: Tensor  # [3,R] world axes, 0 for sky


class Meeting(NamedTuple):
    t: Tensor  # [R] distance along the ray, inf for sky
    ids: Tensor  # [R] 0 sky, 1 ground, 2 + slot for things


def meet(p: Pack, scene: Tensor, o: Tensor, d: Tensor, area: int = 0) -> Meeting:
    """What rays o + t d meet first."""
    hits = trace(p, scene, o, d, area)
    t_ground = -o[2] / d[2]
    at_x, at_y = o[0] + t_ground * d[0], o[1] + t_ground * d[1]
    on_disc = (t_ground > 0) & (at_x * at_x + at_y * at_y < GROUND_RADIUS**2)
    t_ground = torch.where(on_disc, t_ground, torch.inf)
    ids = torch.where(hits.t < t_ground, hits.thing % p.slots + 2, on_disc.long())
    return Meeting(torch.minimum(hits.t, t_ground), ids)


def shade(p: Pack, looks: Tensor, scene: Tensor, o: Tensor, d: Tensor, *, area: int = 0) -> Samples:
    """Trace and colour rays o + t d; scene [R] tells the scene of each, looks [15,B] comes from `looks_of`."""
    hits = meet(p, scene, o, d, area)
    t, ids = hits.t, hits.ids
    rgb, normal = torch.zeros_like(d), torch.zeros_like(d)

    m = torch.nonzero(ids == 0).flatten()
    rgb[:, m] = tone(sky(p, looks, take(scene, m), take(d, m)))
    m = torch.nonzero(ids == 1).flatten()
    rgb[:, m] = tone(_lit_ground(p, looks, take(scene, m), take(o, m) + take(t, m) * take(d, m), take(d, m)))
    normal[2] = (ids == 1).to(d.dtype)
    m = torch.nonzero(ids > 1).flatten()
    points = take(o, m) + take(t, m) * take(d, m)
    thing = take(scene, m) * p.slots + take(ids, m) - 2
    n = normals(p, thing, points)
    normal[:, m] = n
    rgb[:, m] = tone(_lit_thing(p, looks, thing, points, n, take(d, m)))
    return Samples(rgb, t, ids, normal)


def tone(light: Tensor) -> Tensor:
    """Linear light to sRGB, with a soft shoulder above 0.75."""
    over = (light - 0.75).clamp_min(0)
    x = light.clamp(0, 0.75) + 0.25 * over / (over + 0.25)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * power(x, 1 / 2.4) - 0.055)


def _occlusion(p: Pack, scene: Tensor, points: Tensor, n: Tensor | None, own: Tensor | None) -> Tensor:
    """Share of ambient light left by the other things, each taken as a ball; None means n = up."""
    left = torch.ones_like(points[0])
    for slot in range(p.slots):
        thing = scene * p.slots + slot
        to = take(p.centre, thing) - points
        near2 = dot(to, to).clamp_min(1e-4)
        cosine = (to[2] if n is None else dot(to, n)) * near2.rsqrt()
        r2 = take(0.81 * p.radius * p.radius * (p.bound2 > 0), thing)
        block = cosine.clamp(0, 1) * (r2 / near2).clamp(0, 1)
        left = left * (1 - (block if own is None else block * (thing != own)))
    return left


def _lit_ground(p: Pack, looks: Tensor, scene: Tensor, points: Tensor, d: Tensor) -> Tensor:
    albedo, haze = ground(p, looks, scene, points)
    lit = shadow(p, scene, points, torch.full_like(scene, -1))
    key = take(looks[13] * p.light[2] * 1.05 * p.tint, scene) * lit
    soft = take(looks[14] * (1 + 0.3 * (p.tint - 1)), scene) * _occlusion(p, scene, points, None, None)
    color = albedo * (key + soft)
    # At the rim the ground takes the colour of the sky just above it.
    horizon = take(looks[3:6] * (1 + 0.35 * (p.tint - 1)), scene)
    return torch.lerp(color, horizon, haze)


def _lit_thing(p: Pack, looks: Tensor, thing: Tensor, points: Tensor, n: Tensor, d: Tensor) -> Tensor:
    scene = torch.div(thing, p.slots, rounding_mode="floor")
    light, tint = take(p.light, scene), take(p.tint, scene)
    facing = dot(n, light)
    lit = torch.zeros_like(facing)
    m = torch.nonzero(facing > 0).flatten()
    lit[m] = shadow(p, take(scene, m), take(points, m) + 0.004 * take(n, m), take(thing, m))
    left = _occlusion(p, scene, points, n, thing)
    # Light from the sky above, some bounced from the ground, less near the ground.
    up = 0.5 + 0.5 * n[2]
    contact = 0.45 + 0.55 * smooth(points[2] / 0.35, 0.0, 1.0)
    bounce = take(looks[6:9], scene) * 0.5 * (1 - up) * contact
    soft = (take(looks[14], scene) * (0.55 + 0.45 * up) * tint.sub(1).mul(0.3).add(1) + bounce) * left
    # Night stays dim, but colours on things must stay readable.
    strength = take(looks[13].clamp_min(0.8), scene)
    key = strength * 1.05 * facing.clamp_min(0) * lit * tint
    albedo = take(p.color, thing)
    color = albedo * (key + soft)

    material = take(p.material, thing)
    glossy = torch.nonzero(material != MATERIALS.index("matte")).flatten()
    if glossy.numel():
        metal = take(material, glossy) == MATERIALS.index("metal")
        v, nn = take(d, glossy), take(n, glossy)
        cosine = -dot(v, nn)
        bounce_dir = v + 2 * cosine * nn
        seen = mirror(p, looks, take(thing, glossy), take(points, glossy), bounce_dir) * (
            0.35 + 0.65 * take(left, glossy)
        )
        fresnel = (1 - cosine.clamp(0, 1)).square().square()
        sharp = smooth(dot(bounce_dir, take(light, glossy)), 0.955, 0.975) * take(lit, glossy)
        base = take(color, glossy)
        shine = (
            0.9 * base
            + seen * (0.12 + 0.35 * fresnel)
            + 0.9 * sharp * take(tint, glossy) * take(strength, glossy)
        )
        rim = torch.lerp(take(albedo, glossy) * 0.95 + 0.02, torch.ones_like(base), 0.5 * fresnel)
        steel = rim * seen * 1.3 + 0.12 * base
        color[:, glossy] = torch.where(metal, steel, shine)
    return color
