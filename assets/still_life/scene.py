"""Vocabulary and value objects of the Still Life world.

A `Scene` is plain data: things, their relations (as seen in the front view), a setting, a
light and a camera. World axes are those of `camera.py`: x right, y away, z up, ground z = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from .camera import Camera, Vec

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "capsule", "pyramid", "mug")
MATERIALS = ("matte", "shiny", "metal")
SIZES: dict[str, float] = {"small": 0.42, "medium": 0.62, "large": 0.88}
"""Size name to radius in world units; samples vary by +-5 %."""
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 26, 32),
    "orange": (245, 122, 12),
    "yellow": (250, 214, 30),
    "green": (36, 150, 54),
    "cyan": (40, 208, 214),
    "blue": (28, 66, 210),
    "purple": (116, 40, 168),
    "pink": (250, 128, 184),
    "white": (198, 198, 196),
    "black": (30, 30, 34),
}
"""Colour name to sRGB, 0..255."""
RELATIONS = ("left of", "right of", "in front of", "behind", "on top of")
SETTINGS = ("studio", "meadow", "snow", "desert", "sea", "night")
LIGHT_DIRECTIONS = ("left", "right", "front")
LIGHT_COLORS = ("neutral", "warm", "cool")


class Form(NamedTuple):
    """Extent of a shape of radius 1, in object units around its centre."""

    lift: float
    """Half the height: the centre stands this far above what it rests on."""
    foot: float
    """Radius of the footprint circle."""
    bound: float
    """Radius of a sphere that contains the shape."""
    profile: tuple[tuple[float, float], ...]
    """(height, half width) from bottom to top, the outline seen from the side."""


FORMS: dict[str, Form] = {
    "sphere": Form(1.0, 1.0, 1.001, ((-1, 0.0), (-0.7, 0.71), (0, 1.0), (0.7, 0.71), (1, 0.0))),
    "cube": Form(0.78, 1.02, 1.34, ((-0.78, 1.0), (0.78, 1.0))),
    "cylinder": Form(0.85, 0.75, 1.12, ((-0.85, 0.75), (0.85, 0.75))),
    "cone": Form(0.9, 0.92, 1.29, ((-0.9, 0.92), (0.9, 0.0))),
    "torus": Form(0.98, 0.98, 1.0, ((-0.98, 0.0), (-0.7, 0.7), (0, 0.98), (0.7, 0.7), (0.98, 0.0))),
    "capsule": Form(1.0, 0.5, 1.001, ((-1, 0.0), (-0.8, 0.42), (-0.5, 0.5), (0.5, 0.5), (0.8, 0.42), (1, 0))),
    "pyramid": Form(0.85, 1.12, 1.53, ((-0.85, 1.12), (0.85, 0.0))),
    "mug": Form(0.74, 0.86, 1.12, ((-0.74, 0.86), (0.74, 0.86))),
}
FLAT_TOPS = ("cube", "cylinder")
"""Shapes that can carry another thing."""


def check_word(name: str, value: str | None, known: Collection[str]) -> None:
    """Raise ValueError unless the value is known, or None (left open)."""
    if value is not None and value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Thing:
    """One solid object. `position` is its centre, `radius` its scale, both in world units."""

    shape: str
    color: str
    material: str = "matte"
    size: str = "medium"
    position: Vec = (0.0, 0.0, 0.0)
    radius: float = 0.62
    yaw: float = 0.0
    """Turn about the vertical axis, radians, counter-clockwise from above."""

    def __post_init__(self) -> None:
        check_word("shape", self.shape, SHAPES)
        check_word("color", self.color, COLORS)
        check_word("material", self.material, MATERIALS)
        check_word("size", self.size, SIZES)
        if len(self.position) != 3 or not all(math.isfinite(p) for p in self.position):
            raise ValueError(f"position must be three finite numbers, got {self.position}")
        if not 0.0 < self.radius <= 1e3:
            raise ValueError(f"radius must be in (0, 1000], got {self.radius}")
        if not math.isfinite(self.yaw):
            raise ValueError(f"yaw must be finite, got {self.yaw}")

    @property
    def base(self) -> float:
        """Height of the lowest point."""
        return self.position[2] - FORMS[self.shape].lift * self.radius

    @property
    def top(self) -> float:
        """Height of the highest point."""
        return self.position[2] + FORMS[self.shape].lift * self.radius


@dataclass(frozen=True)
class Relation:
    """`things[subject]` stands in `relation` to `things[object]`, as seen in the front view."""

    subject: int
    relation: str
    object: int

    def __post_init__(self) -> None:
        check_word("relation", self.relation, RELATIONS)


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw and describe one picture."""

    things: tuple[Thing, ...]
    relations: tuple[Relation, ...] = ()
    setting: str = "studio"
    light_direction: str = "left"
    light_color: str = "neutral"
    camera: Camera = field(default_factory=Camera)
    seed: int = 0
    """Varies the ground texture and the sky."""
    dusk: float = 0.0
    """How far the setting has turned to night, 0..1."""

    def __post_init__(self) -> None:
        check_word("setting", self.setting, SETTINGS)
        check_word("light_direction", self.light_direction, LIGHT_DIRECTIONS)
        check_word("light_color", self.light_color, LIGHT_COLORS)
        for rel in self.relations:
            for index in (rel.subject, rel.object):
                if not 0 <= index < len(self.things):
                    raise ValueError(f"relation index {index} outside the {len(self.things)} things")
            if rel.subject == rel.object:
                raise ValueError(f"thing {rel.subject} cannot be {rel.relation} itself")
        if not 0.0 <= self.dusk <= 1.0:
            raise ValueError(f"dusk must be in 0..1, got {self.dusk}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must fit in 64 bits, got {self.seed}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; optional fields only where they differ from their default."""
        return to_record(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Scene:
        """Inverse of `to_dict`; raises ValueError on data that is no scene."""
        x = from_record(data, Scene)
        things = [from_record(t, Thing) for t in x["things"]]
        x["things"] = tuple(Thing(**{**t, "position": tuple(t["position"])}) for t in things)
        x["relations"] = tuple(Relation(**from_record(r, Relation)) for r in x["relations"])
        x["camera"] = Camera(**from_record(x["camera"], Camera))
        return Scene(**x)


OPTIONAL = {"roll_deg": 0.0, "pan_deg": 0.0, "dusk": 0.0}
"""Fields younger than the first scene files, and their defaults."""


def to_record(value: Any) -> Any:
    """Dataclasses, also nested, to plain JSON data."""
    if is_dataclass(value):
        pairs = {f.name: to_record(getattr(value, f.name)) for f in fields(value)}
        return {k: v for k, v in pairs.items() if k not in OPTIONAL or v != OPTIONAL[k]}
    return [to_record(v) for v in value] if isinstance(value, tuple) else value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 <= value <= 1e9


KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda v: isinstance(v, str),
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": _number,
    "str | None": lambda v: v is None or isinstance(v, str),
    "Vec": lambda v: isinstance(v, list | tuple) and len(v) == 3 and all(map(_number, v)),
    "Camera": lambda v: isinstance(v, Mapping),
    "tuple[Thing, ...]": lambda v: isinstance(v, list | tuple),
    "tuple[Part, ...]": lambda v: isinstance(v, list | tuple),
    "tuple[Relation, ...]": lambda v: isinstance(v, list | tuple),
}
"""What JSON may hold for each annotation."""


def from_record(data: Any, kind: type) -> dict[str, Any]:
    """`data` as keyword arguments of `kind`, keys and types checked."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{kind.__name__} must be a mapping, got {type(data).__name__}")
    known = {f.name: str(f.type) for f in fields(kind)}
    if not set(known) - set(OPTIONAL) <= set(data) <= set(known):
        got = sorted(map(str, data))
        raise ValueError(f"{kind.__name__} needs exactly the keys {sorted(known)}, got {got}")
    for name, value in data.items():
        if not KINDS[known[name]](value):
            raise ValueError(f"{kind.__name__}.{name} must be {known[name]}, got {str(value)[:40]!r}")
    return dict(data)
