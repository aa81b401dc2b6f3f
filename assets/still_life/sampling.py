"""Random scenes, the same for the same seed and split on every machine.

Three disjoint splits: "train"; "test", whose whole captions never occur in train; and
"reserved", which always shows a (shape, colour) pair that neither of the others ever shows.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from random import Random

from .camera import Camera
from .grammar import caption
from .placing import STACK_LIMIT, centred, framed, grounded, holds, related, seen, touch
from .scene import (
    COLORS,
    FLAT_TOPS,
    LIGHT_COLORS,
    LIGHT_DIRECTIONS,
    MATERIALS,
    RELATIONS,
    SETTINGS,
    SHAPES,
    SIZES,
    Relation,
    Scene,
    Thing,
)

SPLITS = ("train", "test", "reserved")
RESERVED_PAIRS = frozenset(
    {
        ("sphere", "purple"),
        ("cube", "yellow"),
        ("cylinder", "pink"),
        ("cone", "cyan"),
        ("torus", "green"),
        ("capsule", "orange"),
        ("pyramid", "red"),
        ("mug", "blue"),
    }
)
"""(shape, colour) pairs that never appear in train or test."""


def caption_is_reserved(text: str) -> bool:
    """True for the one in fifty canonical captions that belong to the test split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 50 == 0


def sample_scene(seed: int, *, split: str = "train", max_things: int = 3) -> Scene:
    """A random scene with one to `max_things` things (45, 35, 20 %)."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if not 1 <= max_things <= 3:
        raise ValueError(f"max_things must be in 1..3, got {max_things}")
    rng = Random(f"still life {split} {seed}")
    count = rng.choices((1, 2, 3)[:max_things], (45, 35, 20)[:max_things])[0]
    for _ in range(20_000):
        draft = _draft(rng, count, seed)
        if not _belongs(draft, split):
            continue
        scene = _place(draft, rng)
        if scene is not None:
            return scene
    raise RuntimeError(f"no scene found for seed {seed}, split {split!r}")


def _belongs(draft: Scene, split: str) -> bool:
    pairs = [(t.shape, t.color) for t in draft.things]
    if len(set(pairs)) < len(pairs):
        return False
    reserved = any(p in RESERVED_PAIRS for p in pairs)
    if split == "reserved":
        return reserved
    return not reserved and caption_is_reserved(caption(draft)) == (split == "test")


def _draft(rng: Random, count: int, seed: int) -> Scene:
    """Attributes and relations, no positions yet."""
    things = [_thing(rng) for _ in range(count)]
    relations: list[Relation] = []
    if count > 1:
        relations.append(Relation(0, rng.choices(RELATIONS, (20, 20, 17, 17, 26))[0], 1))
    if count > 2:
        # A thing that stands on another is no anchor: its neighbours stand on the ground.
        anchor = 1 if relations[0].relation == "on top of" else rng.randrange(2)
        options = RELATIONS[:4] if relations[0].relation == "on top of" else RELATIONS
        relations.append(Relation(2, rng.choice(options), anchor))
    for rel in relations:
        if rel.relation == "on top of":
            flat = replace(things[rel.object], shape=rng.choice(FLAT_TOPS))
            size = rng.choices(("small", "medium", "large"), (1, 5, 5))[0]
            things[rel.object] = replace(flat, size=size, radius=_radius(rng, size))
    camera = Camera(azimuth_deg=rng.uniform(-4, 4) % 360.0, elevation_deg=21.0 + rng.uniform(-2, 2))
    return Scene(
        tuple(things),
        tuple(relations),
        rng.choice(SETTINGS),
        rng.choice(LIGHT_DIRECTIONS),
        rng.choice(LIGHT_COLORS),
        camera,
        seed,
    )


def _radius(rng: Random, size: str) -> float:
    return SIZES[size] * rng.uniform(0.95, 1.05)


def _thing(rng: Random) -> Thing:
    shape, size = rng.choice(SHAPES), rng.choice(tuple(SIZES))
    color, material = rng.choice(tuple(COLORS)), rng.choice(MATERIALS)
    yaw = rng.uniform(-math.pi, math.pi)
    if shape == "torus":  # keep the hole in sight of the front camera
        yaw = rng.uniform(-0.6, 0.6)
    if shape == "mug":  # keep the handle at one side
        yaw = rng.choice((0.0, math.pi)) + rng.uniform(-0.6, 0.6)
    return Thing(shape, color, material, size, (0.0, 0.0, 0.0), _radius(rng, size), yaw)


def _place(draft: Scene, rng: Random) -> Scene | None:
    """Try positions that satisfy the relations, the frame and visibility."""
    for _ in range(24):
        things = list(draft.things)
        # The first relation leads from thing 0 to thing 1, so thing 1 (or an only thing) comes first.
        first = min(1, len(things) - 1)
        things[first] = grounded(things[first], 0.0, 0.0)
        for rel in draft.relations:
            spot = related(things[rel.subject], rel.relation, things[rel.object], rng)
            if spot is None:
                return None
            things[rel.subject] = spot
        scene = replace(draft, things=centred(things, rng))
        if holds(scene) and not touch(scene) and framed(scene) and seen(scene):
            return scene
    return None
