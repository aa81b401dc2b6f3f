"""Random scenes, the same for the same seed and split on every machine.

Three disjoint splits: "train"; "test", whose whole captions never occur in train; and
"reserved", which always shows a (shape, colour) pair that neither of the others ever shows.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from random import Random

from .camera import VIEWS, Camera
from .grammar import caption
from .parser import Description, Part
from .placing import STACK_LIMIT, centred, framed, grounded, holds, related, seen, touch
from .scene import (
    COLORS,
    FLAT_TOPS,
    FORMS,
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
from .words import INVERSE

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

SHARES = (45, 35, 20)
"""How often a scene holds one, two and three things, in percent."""
MAX_THINGS = 4
"""Most things of a described scene."""
ANYTHING = Part()
TRIES = ((0.82, 5.9), (0.6, 5.9), (0.35, 5.9), (0.6, 7.2), (0.3, 8.2))
"""What `scene_from` settles for, 120 attempts each: least visible share and camera distance."""


def caption_is_reserved(text: str) -> bool:
    """True for the one in fifty canonical captions that belong to the test split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 50 == 0


def sample_scene(
    seed: int, *, split: str = "train", max_things: int = 3, shares: tuple[int, int, int] = SHARES
) -> Scene:
    """A random scene with one to `max_things` things, in these relative shares."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if not 1 <= max_things <= 3:
        raise ValueError(f"max_things must be in 1..3, got {max_things}")
    rng = Random(f"still life {split} {seed}")
    count = rng.choices((1, 2, 3)[:max_things], shares[:max_things])[0]
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
    things = [random_thing(rng) for _ in range(count)]
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


def random_thing(rng: Random, part: Part = ANYTHING) -> Thing:
    """A thing with what `part` tells and the rest at random, no place yet."""
    shape, size = part.shape or rng.choice(SHAPES), part.size or rng.choice(tuple(SIZES))
    color, material = part.color or rng.choice(tuple(COLORS)), part.material or rng.choice(MATERIALS)
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


def scene_from(wanted: Description, seed: int = 0) -> Scene:
    """A scene in which the description holds; what it leaves open is drawn from the seed.

    Raises ValueError with one sentence that says why when no such scene exists or is found.
    """
    bottoms = _bottoms(wanted)
    rng = Random(f"scene from {seed}")
    for least, distance in TRIES:
        for _ in range(120):
            draft = _filled(wanted, rng, seed, distance)
            scene = draft and _arranged(draft, bottoms, rng)
            if scene and holds(scene) and not touch(scene) and framed(scene, distance) and seen(scene, least):
                return scene
    told = "; ".join(
        f"{wanted.things[r.subject]} {r.relation} {wanted.things[r.object]}" for r in wanted.relations
    )
    raise ValueError(f"found no place for all things so that this holds: {told or 'all are in the picture'}")


def _bottoms(wanted: Description) -> list[int]:
    """For each thing the lowest one of its stack. Raises ValueError for stacks that cannot stand."""
    things = wanted.things
    if not 1 <= len(things) <= MAX_THINGS:
        raise ValueError(f"a scene holds 1 to {MAX_THINGS} things, got {len(things)}")
    below: dict[int, int] = {}
    for rel in wanted.relations:
        if rel.relation != "on top of":
            continue
        upper, lower = things[rel.subject], things[rel.object]
        if lower.shape not in (None, *FLAT_TOPS):
            flat = " and ".join(f"{shape}s" for shape in FLAT_TOPS)
            raise ValueError(f"nothing can stand on a {lower.shape}: only {flat} have flat tops")
        if rel.subject in below or rel.object in below.values():
            raise ValueError(f"the {upper} cannot stand on the {lower}: one thing stands on one other thing")
        if 0.95 * SIZES[upper.size or "small"] > 1.15 * 1.05 * SIZES[lower.size or "large"]:
            raise ValueError(f"the {upper} is too wide to stand on the {lower}")
        below[rel.subject] = rel.object
    bottoms = []
    for index in range(len(things)):
        chain = [index]
        while chain[-1] in below:
            chain.append(below[chain[-1]])
            if len(chain) > len(things):
                raise ValueError(f"the {things[index]} cannot stand on itself")
        lifts = [FORMS[p.shape].lift if p.shape else 0.74 for p in map(things.__getitem__, chain)]
        sizes = [0.95 * SIZES[things[i].size or "small"] for i in chain]
        if len(chain) > 1 and sum(2 * a * b for a, b in zip(lifts, sizes, strict=True)) > STACK_LIMIT:
            raise ValueError(f"the stack under the {things[index]} would be higher than the picture")
        bottoms.append(chain[-1])
    return bottoms


def _filled(wanted: Description, rng: Random, seed: int, distance: float) -> Scene | None:
    """Open points drawn, and relations that join all things; None when two things became alike."""
    carriers = {r.object for r in wanted.relations if r.relation == "on top of"}
    things = []
    for index, part in enumerate(wanted.things):
        if index in carriers:
            size = part.size or rng.choices(("small", "medium", "large"), (1, 5, 5))[0]
            part = replace(part, shape=part.shape or rng.choice(FLAT_TOPS), size=size)
        things.append(random_thing(rng, part))
    alike = len({(t.shape, t.color) for t in things}) < len(things)
    if alike and any(None in (p.shape, p.color) for p in wanted.things):
        return None
    relations = list(wanted.relations)
    group = _joined({0}, relations)
    while len(group) < len(things):
        rest = [i for i in range(len(things)) if i not in group]
        relations.append(Relation(rest[0], rng.choice(RELATIONS[:4]), rng.choice(sorted(group))))
        group = _joined(group, relations)
    return Scene(
        tuple(things),
        tuple(relations),
        wanted.setting or rng.choice(SETTINGS),
        wanted.light_direction or rng.choice(LIGHT_DIRECTIONS),
        wanted.light_color or rng.choice(LIGHT_COLORS),
        Camera(
            (VIEWS[wanted.view or "front"] + rng.uniform(-4, 4)) % 360.0, 21.0 + rng.uniform(-2, 2), distance
        ),
        seed,
    )


def _joined(group: set[int], relations: list[Relation]) -> set[int]:
    """The group and all that relations join to it."""
    group = set(group)
    for _ in relations:
        for rel in relations:
            if rel.subject in group or rel.object in group:
                group |= {rel.subject, rel.object}
    return group


def _arranged(draft: Scene, bottoms: list[int], rng: Random) -> Scene | None:
    """Random places after the relations: first what stands on the ground, then the stacks upwards."""
    things = list(draft.things)
    placed = {bottoms[0]}
    things[bottoms[0]] = grounded(things[bottoms[0]], 0.0, 0.0)
    stacks = [r for r in draft.relations if r.relation == "on top of"]
    flat = [r for r in draft.relations if r.relation != "on top of"]
    for _ in range(2 * len(things)):
        for rel in flat:
            a, b = bottoms[rel.subject], bottoms[rel.object]
            name = rel.relation
            if a in placed:
                a, b, name = b, a, INVERSE[name]
            if b in placed and a not in placed:
                spot = related(things[a], name, things[b], rng)
                things[a] = spot or things[a]
                placed.add(a)
        for rel in stacks:
            if rel.object in placed and rel.subject not in placed:
                spot = related(things[rel.subject], rel.relation, things[rel.object], rng)
                if spot is None:
                    return None
                things[rel.subject] = spot
                placed.add(rel.subject)
    return replace(draft, things=centred(things, rng)) if len(placed) == len(things) else None
