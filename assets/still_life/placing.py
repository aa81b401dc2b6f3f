"""Where things stand: relations, the frame, contact and visibility, in world coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

from .camera import Camera
from .scene import FORMS, Relation, Scene, Thing

STACK_LIMIT = 2.45
"""Greatest height of a stack, world units, so that it stays inside the frame."""
MIN_VISIBLE = 0.82
"""Least share of outline points that no nearer thing covers, in the front view."""


def grounded(thing: Thing, x: float, y: float) -> Thing:
    """The thing on the ground at (x, y)."""
    return replace(thing, position=(x, y, FORMS[thing.shape].lift * thing.radius))


def foot(thing: Thing) -> float:
    """Radius of its footprint, world units."""
    return FORMS[thing.shape].foot * thing.radius


def related(thing: Thing, relation: str, anchor: Thing, rng: Random) -> Thing | None:
    """The thing at a random place in the relation to the anchor; None when it cannot stand on it."""
    x, y, _ = anchor.position
    if relation == "on top of":
        lift = FORMS[thing.shape].lift * thing.radius
        if thing.radius > 1.15 * anchor.radius or anchor.top + 2 * lift > STACK_LIMIT:
            return None
        slack = 0.08 * anchor.radius
        return replace(
            thing,
            position=(x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack), anchor.top + lift),
        )
    reach = foot(thing) + foot(anchor)
    along = reach + rng.uniform(0.12, 0.7)
    if relation in ("left of", "right of"):
        sign = -1.0 if relation == "left of" else 1.0
        return grounded(thing, x + sign * along, y + rng.uniform(-0.3, 0.3) * along)
    sign = -1.0 if relation == "in front of" else 1.0
    return grounded(thing, x + rng.uniform(-0.62, 0.62) * along, y + sign * along)


def centred(things: list[Thing], rng: Random) -> tuple[Thing, ...]:
    """Move the group so that its footprint is centred, give or take a little."""
    mid: list[float] = []
    for axis in (0, 1):
        low = min(t.position[axis] - foot(t) for t in things)
        high = max(t.position[axis] + foot(t) for t in things)
        mid.append((low + high) / 2 + rng.uniform(-0.3, 0.3) / len(things))
    return tuple(
        replace(t, position=(t.position[0] - mid[0], t.position[1] - mid[1], t.position[2])) for t in things
    )


def true(things: Sequence[Thing], rel: Relation) -> bool:
    """True when a relation is plainly so in world coordinates."""
    a, b = things[rel.subject], things[rel.object]
    dx, dy = a.position[0] - b.position[0], a.position[1] - b.position[1]
    return {
        "left of": dx < 0 and abs(dy) <= 0.5 * -dx,
        "right of": dx > 0 and abs(dy) <= 0.5 * dx,
        "in front of": dy < 0 and abs(dx) <= 0.7 * -dy,
        "behind": dy > 0 and abs(dx) <= 0.7 * dy,
        "on top of": abs(a.base - b.top) < 1e-5 and math.hypot(dx, dy) < 0.2 * b.radius,
    }[rel.relation]


def holds(scene: Scene) -> bool:
    """True when every relation is plainly so in world coordinates."""
    return all(true(scene.things, rel) for rel in scene.relations)


def carried(relations: Sequence[Relation], bottom: int) -> set[int]:
    """`bottom` and all that stands on it, directly or on others."""
    out, new = {bottom}, {bottom}
    while new:
        new = {r.subject for r in relations if r.relation == "on top of" and r.object in new} - out
        out |= new
    return out


def touch(scene: Scene) -> bool:
    """True when two things, neither carrying the other, come nearer than 0.08 seen from above."""
    stacks = [carried(scene.relations, i) for i in range(len(scene.things))]
    for i, a in enumerate(scene.things):
        for j, b in enumerate(scene.things[:i]):
            if i in stacks[j] or j in stacks[i]:
                continue
            gap = math.hypot(a.position[0] - b.position[0], a.position[1] - b.position[1])
            if gap < foot(a) + foot(b) + 0.08:
                return True
    return False


def _width(thing: Thing, height: float) -> float:
    """Half width of the outline at a height over the centre; below zero outside."""
    profile = FORMS[thing.shape].profile
    z = height / thing.radius
    for (z0, w0), (z1, w1) in pairwise(profile):
        if z0 <= z <= z1:
            return thing.radius * (w0 + (w1 - w0) * (z - z0) / (z1 - z0))
    return -1.0


def framed(scene: Scene, distance: float = 5.9, *, around: bool = True) -> bool:
    """True when all outlines lie inside the front view, and nearly so in the side and back views."""
    views = ((0.0, 0.93), (90.0, 1.0), (180.0, 1.0), (270.0, 1.0)) if around else ((0.0, 1.0),)
    for azimuth, limit in views:
        camera = Camera(azimuth_deg=azimuth, distance=distance)
        (rx, ry, _), _, _ = camera.axes()
        for t in scene.things:
            x, y, z = t.position
            for height, width in FORMS[t.shape].profile:
                for side in (-width * t.radius, width * t.radius):
                    u, v, _ = camera.project((x + side * rx, y + side * ry, z + height * t.radius))
                    if max(abs(u), abs(v)) > limit:
                        return False
    return True


def seen(scene: Scene, least: float = MIN_VISIBLE) -> bool:
    """True when the share `least` of each thing is not covered by nearer ones in the front view."""
    camera = Camera()
    slope = math.cos(math.radians(camera.elevation_deg))
    spots = [camera.project(t.position) for t in scene.things]
    focal = 1.0 / math.tan(math.radians(camera.fov_deg) / 2)
    for i, t in enumerate(scene.things):
        free = total = 0.0
        near = [j for j in range(len(spots)) if j != i and scene.things[j].position[1] < t.position[1] - 0.2]
        for level in range(-4, 5):
            height = level / 4.4 * FORMS[t.shape].lift * t.radius
            for step in (-0.9, -0.45, 0.0, 0.45, 0.9):
                width = _width(t, height)
                side = step * width
                u, v, _ = camera.project((t.position[0] + side, t.position[1], t.position[2] + height))
                total += width
                free += width * (
                    not any(
                        abs(u - spots[j][0]) * spots[j][2] / focal
                        < _width(scene.things[j], (spots[j][1] - v) * spots[j][2] / focal / slope)
                        for j in near
                    )
                )
        if free < least * total:
            return False
    return True
