"""What a request from outside may name: models that are known here, files within folders that the operator opened,
pictures by their ids. Anything else a request could use as a path is refused, whatever task it belongs to.

Jobs run in an empty folder, so a name without separators leads to no file; that makes plain words harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ...pipelines.doors import hub
from ...pipelines.errors import SfumatoError
from ..builder import kind_of, named
from ..chosen import LoraChoice, Technique
from ..faults import nearest, refuse
from ..inspection import INDEX, MODELS
from ..jobs.store import Store
from ..model_paths import find_shared
from ..registry import read_registry
from ..requests import Request
from .inputs import Inputs

R = TypeVar("R", bound=Request)

BRIDGE = "bridge.json"
LONGEST = 4000


@dataclass(frozen=True)
class Places:
    roots: tuple[Path, ...]
    home: Path
    inputs: Inputs

    def folder(self) -> Path:
        """Where jobs run: nothing lies in it."""
        found = self.home / "served"
        found.mkdir(parents=True, exist_ok=True)
        return found

    def admitted(self, request: R, store: Store) -> R:
        """The request with its places checked and spelled out."""
        found = {}
        for name, info in type(request).model_fields.items():
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            value = dict(request)[name]
            if value is None or (value == info.default and extra.get("holds") != "model"):
                continue
            found[name] = self.field(name, str(extra.get("holds", "")), value, store)
        return request.model_copy(update=found)

    def field(self, name: str, holds: str, value: Any, store: Store) -> Any:
        if isinstance(value, tuple):
            return tuple(self.field(name, holds, inner, store) for inner in value)
        if isinstance(value, Technique):
            return self.technique(value, name)
        if isinstance(value, LoraChoice):
            return value.model_copy(update={"name": self.lora(value.name, name)})
        if isinstance(value, str):
            _readable(value, name)
            match holds:
                case "words":
                    return value
                case "model":
                    return self.model(value, name)
                case "bridge":
                    return value if value in installed(BRIDGE) else self.place(value, name)
                case "picture":
                    return str(self.inputs.path(value, name, store))
                case "pictures":
                    what, _, id = value.partition("=")
                    return f"{_plain(what, name)}={self.inputs.path(id, name, store)}"
                case "place":
                    return self.place(value, name)
        return self.harmless(value, name)

    def model(self, text: str, field: str) -> str:
        """A name that this machine knows, or a place within an open folder."""
        _sound(text, field)
        names = installed(INDEX)
        remembered = read_registry()
        if text in names or text in remembered:
            return text
        shared = find_shared(text)
        if shared is not None:
            return str(shared)
        if hub.is_id(text) and self._pulled(text):
            return text
        place = self.within(text)
        if place is not None:
            return str(place)
        near = nearest(text, [*names, *remembered])
        remedy = f"is no model that this server has; {near}GET /v1/capabilities lists them"
        raise refuse(field, text, f"{remedy}, and the operator opens a folder with --allow-path")

    def _pulled(self, text: str) -> bool:
        try:
            return hub.pulled(text) is not None
        except SfumatoError:
            return False

    def lora(self, text: str, field: str) -> str:
        """A place within an open folder, or a name for the folder of LoRAs, which keeps to itself."""
        _sound(text, field)
        place = self.within(text)
        if place is not None:
            return str(place)
        return _plain(text, field)

    def place(self, text: str, field: str) -> str:
        _sound(text, field)
        found = self.within(text)
        if found is not None:
            return str(found)
        raise refuse(
            field, text, "is in no folder that is open here; the operator opens one with --allow-path"
        )

    def technique(self, technique: Technique, field: str) -> Technique:
        """A technique of the catalogue; texts among its settings are words or places."""
        entry = named(technique, kind_of(field), field)
        settings = {}
        for name, value in technique.settings.items():
            place = f"{field}: {entry.id}:{name}"
            opened = self.within(value) if isinstance(value, str) and _is_sound(value) else None
            settings[name] = str(opened) if opened is not None else self.harmless(value, place)
        return technique.model_copy(update={"settings": settings})

    def harmless(self, value: Any, field: str) -> Any:
        """No text in it could be a path that leads out of an empty folder."""
        if isinstance(value, str):
            return _plain(value, field)
        if isinstance(value, BaseModel):
            for inner in dict(value).values():
                self.harmless(inner, field)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                self.harmless(key, field)
                self.harmless(inner, field)
        elif isinstance(value, list | tuple | set | frozenset):
            for inner in value:
                self.harmless(inner, field)
        elif isinstance(value, Path):
            _plain(str(value), field)
        return value

    def within(self, text: str) -> Path | None:
        """What is there under this name or path, with all links followed, if that is in an open folder."""
        for root in self.roots:
            home = root.expanduser().resolve()
            try:
                real = (home / text).resolve()
                if real.is_relative_to(home) and real.exists():
                    return real
            except (OSError, RuntimeError):  # too long a name, a ring of links
                continue
        return None


def installed(index: str) -> list[str]:
    """What came with the installation."""
    return [found.parent.name for found in MODELS.glob(f"*/{index}")]


def _readable(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refuse(field, text[:40], "must be valid text; half a surrogate is none") from error


def _is_sound(text: str) -> bool:
    return bool(text) and "\0" not in text and len(text) <= LONGEST and not text.startswith("~")


def _sound(text: str, field: str) -> None:
    if not _is_sound(text):
        raise refuse(field, text, "is no name of a file; leave out ~ and control characters")


def _plain(text: str, field: str) -> str:
    if text in (".", "..") or text.startswith("~") or any(mark in text for mark in "/\\\0"):
        raise refuse(field, text, "looks like a path, which can't be given here; leave out / \\ and ~")
    return text
