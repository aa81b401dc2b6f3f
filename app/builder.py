"""From names to objects: the technique that a request names, its settings checked against their types."""

from __future__ import annotations

import importlib
import math
import typing
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from ..pipelines.errors import BadInput
from .catalogue import Entry, techniques
from .chosen import Technique
from .faults import nearest, refuse, unknown, validation_sentences
from .requests import Request

MEASURED = {"seen": "what the layers are given", "sensitivity": "how much each layer matters"}
"""Settings that only a run of the model can tell."""


def find(technique: Technique, kind: str | None, field: str) -> Entry:
    """The catalogue's entry, of one kind if the field wants one. An unknown name is told the nearest."""
    known, everywhere = by_name(kind), by_name(None)
    if technique.id in known:
        return known[technique.id]
    if technique.id in everywhere:
        other = everywhere[technique.id].kind
        raise refuse(
            field, technique.id, f"is a {other}, not a {kind}; choose from {', '.join(known) or 'none'}"
        )
    raise unknown(field, technique.id, known, f"`sfumato techniques` lists {len(known)}")


def by_name(kind: str | None) -> dict[str, Entry]:
    """Entries by id and by alias, with the defaults that they have under that name."""
    return {name: e.called(name) for e in techniques(kind).values() for name in (e.id, *e.aliases)}


def named(technique: Technique, kind: str | None, field: str) -> Entry:
    """The entry, if all settings given are its own, and all are given that it can't do without."""
    entry = find(technique, kind, field)
    known = [setting.name for setting in entry.settings]
    if technique.settings and not known:
        raise refuse(field, str(technique), f"has settings, but {entry.id} takes none; leave them out")
    for name in technique.settings:
        if name not in known:
            told = f"is no setting; {nearest(name, known)}known are {', '.join(known)}"
            raise refuse(field, f"{entry.id}:{name}", told)
    needed = [s.name for s in entry.settings if s.default is ... and s.name not in technique.settings]
    measured = [name for name in needed if name in MEASURED]
    if measured:
        why = f"needs {measured[0]}, which only a run of the model tells"
        raise refuse(field, entry.id, f"{why}: it is a method of `sfumato models quantize`")
    if needed:
        raise refuse(field, entry.id, f"needs {', '.join(needed)}; write {entry.id}:{needed[0]}=...")
    return entry


def check_named(request: Request) -> None:
    """Refuse techniques of a request that nobody can run, without importing one."""
    for field, value in request:
        for technique in value if isinstance(value, tuple) else (value,):
            if isinstance(technique, Technique):
                named(technique, kind_of(field), field)


def kind_of(field: str) -> str | None:
    """Of the techniques that a request's field takes."""
    return field if field in ("sampler", "schedule") else None


def build(technique: Technique, *, kind: str | None = None, field: str = "techniques") -> Any:
    """The technique itself. Settings are converted to their declared types; the rest keep their defaults."""
    entry = named(technique, kind, field)
    public = getattr(importlib.import_module(entry.module), entry.name)
    if not isinstance(public, type):
        return public
    make: Any = public
    given = settings(entry, public, technique, field)
    try:
        return make(**given)
    except ValueError as error:
        raise BadInput(field, f"{field}: {technique}: {error}") from error


def slot_of(technique: Technique) -> str | None:
    """What a convert or patch needs for itself alone."""
    if find(technique, None, "techniques").kind not in ("convert", "patch"):
        return None
    slot: str | None = build(technique).slot
    return slot


def settings(entry: Entry, public: Any, technique: Technique, field: str) -> dict[str, Any]:
    """The given settings, and what an alias stands for, converted.

    One that only Python can give (a tensor, a function) is refused.
    """
    known = [s.name for s in entry.settings]
    hints = typing.get_type_hints(public)
    preset = {setting: value for alias, setting, value in entry.presets if alias == technique.id}
    found = {}
    for name, value in {**preset, **technique.settings}.items():
        if name not in hints or name not in known:
            near = nearest(name, known)
            raise refuse(
                field, f"{entry.id}:{name}", f"is no setting; {near}known are {', '.join(known) or 'none'}"
            )
        if isinstance(value, float) and math.isnan(value):
            raise refuse(field, f"{entry.id}:{name}=nan", "must be a number")
        found[name] = convert(hints[name], value, f"{field}: {entry.id}:{name}")
    return found


def convert(hint: Any, value: Any, place: str) -> Any:
    """`value` as the declared type."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(value)
    except ValidationError as error:
        sentence = validation_sentences(error, ())[0].removeprefix(": ")
        raise BadInput(place, f"{place}: {sentence}") from error
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise BadInput(place, f"{place}: can be given from Python only, it is no plain value") from error
