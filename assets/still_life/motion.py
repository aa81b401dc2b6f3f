"""Clips: a still scene, moved along one of seven tracks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from .placing import carried, framed, touch, true
from .scene import FORMS, SIZES, Scene, Thing, check_word

AMOUNTS: dict[str, tuple[float, ...]] = {
    "orbit": (60.0, -60.0),
    "pan": (12.0, -12.0),
    "zoom": (1.6, 0.8),
    "roll": (20.0, -20.0),
    "slide": (0.9, -0.9, 0.6, -0.6, 0.3, -0.3),
    "grow": (1.45, 0.6, 1.2, 0.8),
    "day to night": (1.0,),
}
"""Track to the amounts drawn from: orbit, pan and roll in degrees, zoom and grow as a factor, slide in world
units to the right (negative: left), day to night as a share of the way."""
OVERHANG = 1.3
"""A thing may be at most so many times as wide as the one it stands on."""
PHRASES: dict[str, tuple[str, str]] = {
    "orbit": ("the camera orbits to the right", "the camera orbits to the left"),
    "pan": ("the camera pans to the left", "the camera pans to the right"),
    "zoom": ("the camera zooms in", "the camera zooms out"),
    "roll": ("the camera rolls clockwise", "the camera rolls counter-clockwise"),
    "slide": ("the {} slides to the right", "the {} slides to the left"),
    "grow": ("the {} grows", "the {} shrinks"),
    "day to night": ("the day turns to night", "the day turns to night"),
}


@dataclass(frozen=True)
class Track:
    """One motion. What is None is drawn from the seed of `clip`, so that things neither meet nor leave."""

    kind: str
    """A key of `AMOUNTS`."""
    amount: float | None = None
    """Change from the first frame to the last, in the units of `AMOUNTS`."""
    thing: int | None = None
    """Which thing slides or grows."""

    def __post_init__(self) -> None:
        check_word("track", self.kind, AMOUNTS)
        if self.amount is not None and not (math.isfinite(self.amount) and self._fits(self.amount)):
            raise ValueError(f"amount {self.amount} is out of range for {self.kind!r}")

    def _fits(self, amount: float) -> bool:
        low, high = {"zoom": (0.3, 8.0), "grow": (0.2, 4.0), "day to night": (0.0, 1.0)}.get(
            self.kind, (-360.0, 360.0)
        )
        return low <= amount <= high


def clip(scene: Scene, track: Track, frames: int, seed: int = 0) -> list[Scene]:
    """`frames` scenes in equal steps; the first is `scene` itself, the last has gone the whole way."""
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    track = settled(scene, track, seed)
    return [scene, *(moved(scene, track, i / (frames - 1)) for i in range(1, frames))]


def settled(scene: Scene, track: Track, seed: int = 0) -> Track:
    """The track with amount and thing filled in. Raises ValueError when nothing has room to move."""
    rng = Random(f"motion {seed}")
    if track.thing is not None and not 0 <= track.thing < len(scene.things):
        raise ValueError(f"thing {track.thing} outside the {len(scene.things)} things")
    if track.kind == "day to night" and (scene.setting == "night" or scene.dusk == 1.0):
        raise ValueError("it is night already")
    choices = AMOUNTS[track.kind] if track.amount is None else (track.amount,)
    if track.kind not in ("slide", "grow"):
        return replace(track, amount=rng.choice(choices))
    count = len(scene.things)
    things = [track.thing] if track.thing is not None else rng.sample(range(count), count)
    # The largest motions first, their direction by chance.
    pairs = list(zip(choices[::2], choices[1::2], strict=False))
    order = [a for pair in pairs for a in rng.sample(pair, 2)] or choices
    for amount in order:
        for thing in things:
            full = replace(track, amount=amount, thing=thing)
            # Everything moves along straight lines, so a few points on the way are enough.
            if all(_free(moved(scene, full, k / 6)) for k in range(1, 7)):
                return full
    raise ValueError(f"no thing has room to {track.kind}")


def _free(scene: Scene) -> bool:
    firm = all(
        scene.things[r.subject].radius <= OVERHANG * scene.things[r.object].radius
        for r in scene.relations
        if r.relation == "on top of"
    )
    return firm and not touch(scene) and framed(scene, max(scene.camera.distance, 5.9), around=False)


def moved(scene: Scene, track: Track, share: float) -> Scene:
    """The scene at `share` (0..1) of a settled track."""
    if track.amount is None:
        raise ValueError("the track has no amount: use settled(scene, track) first")
    return MOVES[track.kind](scene, track.amount, share, track.thing or 0)


def phrase(scene: Scene, track: Track) -> str:
    """A settled track in words."""
    thing = scene.things[track.thing or 0]
    amount = track.amount if track.amount is not None else 1.0
    forth = amount >= (1.0 if track.kind in ("zoom", "grow") else 0.0)
    return PHRASES[track.kind][0 if forth else 1].format(f"{thing.color} {thing.shape}")


def _orbit(scene: Scene, amount: float, share: float, thing: int) -> Scene:
    azimuth = (scene.camera.azimuth_deg + amount * share) % 360.0
    return replace(scene, camera=replace(scene.camera, azimuth_deg=azimuth))


def _pan(scene: Scene, amount: float, share: float, thing: int) -> Scene:
    return replace(scene, camera=replace(scene.camera, pan_deg=scene.camera.pan_deg + amount * share))


def _roll(scene: Scene, amount: float, share: float, thing: int) -> Scene:
    return replace(scene, camera=replace(scene.camera, roll_deg=scene.camera.roll_deg + amount * share))


def _zoom(scene: Scene, amount: float, share: float, thing: int) -> Scene:
    tangent = math.tan(math.radians(scene.camera.fov_deg) / 2) / amount**share
    return replace(scene, camera=replace(scene.camera, fov_deg=2 * math.degrees(math.atan(tangent))))


def _slide(scene: Scene, amount: float, share: float, thing: int) -> Scene:
    for _ in scene.things:  # the whole stack moves: start at its bottom
        below = [r.object for r in scene.relations if r.relation == "on top of" and r.subject == thing]
        thing = below[0] if below else thing
    stack = carried(scene.relations, thing)
    things = [
        replace(t, position=(t.position[0] + amount * share, *t.position[1:])) if i in stack else t
        for i, t in enumerate(scene.things)
    ]
    return _kept(scene, things)


def _grow(scene: Scene, amount: float, share: float, thing: int) -> Scene:
    old = scene.things[thing]
    new = resized(old, old.radius * (1 + (amount - 1) * share))
    things = list(scene.things)
    things[thing] = new
    for i in carried(scene.relations, thing) - {thing}:
        x, y, z = things[i].position
        things[i] = replace(things[i], position=(x, y, z + new.top - old.top))
    return _kept(scene, things)


def resized(thing: Thing, radius: float) -> Thing:
    """The thing at another radius, its foot where it was, its size word the nearest."""
    x, y, z = thing.position
    height = z + FORMS[thing.shape].lift * (radius - thing.radius)
    size = min(SIZES, key=lambda name: abs(math.log(SIZES[name] / radius)))
    return replace(thing, radius=radius, size=size, position=(x, y, height))


def _kept(scene: Scene, things: list[Thing]) -> Scene:
    """The scene with moved things; relations that are no longer so are dropped."""
    kept = tuple(r for r in scene.relations if r.relation == "on top of" or true(things, r))
    return replace(scene, things=tuple(things), relations=kept)


def _darken(scene: Scene, amount: float, share: float, thing: int) -> Scene:
    return replace(scene, dusk=scene.dusk + (1.0 - scene.dusk) * amount * share)


MOVES: dict[str, Callable[[Scene, float, float, int], Scene]] = {
    "orbit": _orbit,
    "pan": _pan,
    "zoom": _zoom,
    "roll": _roll,
    "slide": _slide,
    "grow": _grow,
    "day to night": _darken,
}
