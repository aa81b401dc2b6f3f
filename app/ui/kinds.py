"""What a field of a request is to a form: which control shows it, and how its value goes there and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from ..catalogue import Entry, techniques
from ..chosen import LoraChoice, Technique
from ..options import bounds_of, plain_type
from ..requests import Request

Kind = Literal[
    "words",
    "text",
    "number",
    "slider",
    "flag",
    "choice",
    "technique",
    "techniques",
    "lines",
    "model",
    "bridge",
    "picture",
    "mask",
    "pictures",
]
EXACT = 2**53
"""Whole numbers above this are not exact in a browser, so they are kept as text."""
PLAIN = ("int", "float", "str", "bool", "tuple", "Literal")
"""Beginnings of the types of settings that can be typed in; others are given from Python only."""
ACTING = ("guidance", "wrap", "patch", "convert")


class Field(NamedTuple):
    """One field of a request, as a form needs it."""

    name: str
    kind: Kind
    group: str
    help: str
    unit: str
    default: Any
    low: float | None = None
    high: float | None = None
    whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return self.name.replace("_", " ").capitalize() + (f" ({self.unit})" if self.unit else "")

    @property
    def range(self) -> str:
        """As "1 to 1000"."""
        if self.low is None:
            return ""
        if self.high is None or self.high >= EXACT:
            return f"from {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def fields_of(request: type[Request]) -> tuple[Field, ...]:
    """All fields in their order. A mask beside an image is drawn on it, not given as a file of its own."""
    names = tuple(request.model_fields)
    return tuple(_field(name, info, names, request.medium) for name, info in request.model_fields.items())


def _field(name: str, info: FieldInfo, names: tuple[str, ...], medium: str) -> Field:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    kind_of_value, several = plain_type(info.annotation)
    bounds = bounds_of(info)
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    kind = _kind(name, str(extra.get("holds", "")), kind_of_value, several, names)
    if kind == "number" and kind_of_value is float and info.default is not None and high == 1:
        kind = "slider"
    if kind == "number" and (info.default is None or (high is not None and high >= EXACT)):
        kind = "text"  # Gradio's control of numbers can't be empty
    choices: tuple[str, ...] = ()
    if get_origin(kind_of_value) is Literal:
        choices = tuple(str(choice) for choice in get_args(kind_of_value))
    elif kind == "technique":
        choices = tuple(usable(medium, (name,)) or usable(medium, ACTING))
    elif kind == "techniques":
        choices = tuple(usable(medium, ACTING))
    group = "techniques" if kind in ("technique", "techniques") else str(extra.get("group", "basic"))
    return Field(
        name,
        kind,
        group,
        str(info.description or ""),
        str(extra.get("unit", "")),
        info.default,
        low,
        high,
        kind_of_value is int,
        choices,
    )


def _kind(name: str, holds: str, value: Any, several: bool, names: tuple[str, ...]) -> Kind:
    match holds:
        case "words" if not several:
            return "words"
        case "model" | "bridge":
            return (
                "model" if holds == "model" and name == "model" else "bridge" if holds == "bridge" else "text"
            )
        case "picture" if not several:
            return "mask" if name == "mask" and "image" in names else "picture"
        case "pictures":
            return "pictures"
    if value is Technique:
        return "techniques" if several else "technique"
    if several or value is LoraChoice:
        return "lines"
    if value is bool:
        return "flag"
    if value in (int, float):
        return "number"
    if get_origin(value) is Literal:
        return "choice"
    return "text"


def usable(medium: str, kinds: tuple[str, ...]) -> dict[str, Entry]:
    """Techniques that a form can offer, by each of their names: of kinds that act on this medium, without Python."""
    return {
        name: entry.called(name)
        for entry in techniques().values()
        for name in (entry.id, *entry.aliases)
        if entry.kind in kinds
        and (not entry.tasks or medium in entry.tasks)
        and all(setting.default is not ... or setting.type.startswith(PLAIN) for setting in entry.settings)
    }


def groups(fields: tuple[Field, ...]) -> Iterator[tuple[str, tuple[Field, ...]]]:
    """Fields by group, the basic ones first, the advanced ones last."""
    names = dict.fromkeys(field.group for field in fields)
    order = sorted(names, key=lambda name: (name != "basic", name == "advanced"))
    for name in order:
        yield name, tuple(field for field in fields if field.group == name)


def taken(field: Field, value: Any) -> Any:
    """What a control holds, as the request takes it; None for what is left open."""
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return None
    match field.kind:
        case "lines":
            return [line.strip() for line in str(value).splitlines() if line.strip()]
        case "number" if field.whole and isinstance(value, float) and value.is_integer():
            return int(value)
        case "text":
            return str(value).strip()
    return value


def told(field: Field, value: Any) -> Any:
    """A request's value, as JSON has it, for its control."""
    if value is None:
        return {"flag": False, "techniques": [], "lines": "", "words": "", "text": ""}.get(field.kind)
    match field.kind:
        case "lines":
            return "\n".join(_line(item) for item in value)
        case "technique":
            return value["id"] if isinstance(value, dict) else str(value)
        case "techniques":
            return [item["id"] if isinstance(item, dict) else str(item) for item in value]
        case "text" | "words":
            return str(value)
    return value


def _line(item: Any) -> str:
    if isinstance(item, dict):  # a LoRA
        weight = item.get("weight", 1.0)
        return str(item.get("name", "")) + ("" if weight == 1.0 else f":{weight:g}")
    return str(item)
