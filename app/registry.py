"""Models that were remembered under a name, and what a name on the command line stands for.

The list is a JSON file in the user's data folder. Names are looked for in this order: a path that exists, a remembered
name, a file in the folders of extra_model_paths.yaml, and then what pipelines/loading knows: built-in, or of the Hub.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from ..pipelines.doors import hub
from .faults import refuse, unknown
from .jobs.home import data_folder
from .model_paths import find_shared
from .output import write_text

NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}")
LORA = "lora"
"""The role of what is put on a model, beside those of models and their parts."""


class Remembered(BaseModel):
    """One model: where it is, what it is, and its hash when it was added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: str
    """An absolute path, or `owner/name@commit`."""
    parts: str | None = None
    """For a single file: where the rest is."""
    kind: str = ""
    """As sd15, or the pipeline of a folder."""
    role: str = ""
    hashes: dict[str, str] = {}
    """Part (or . for a file) to tensor hash; empty if none was taken."""

    @property
    def is_lora(self) -> bool:
        return self.role == LORA


class Registry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: dict[str, Remembered] = {}


class Located(NamedTuple):
    place: str
    parts: str | None = None


def registry_file() -> Path:
    return data_folder() / "models.json"


def read_registry() -> dict[str, Remembered]:
    file = registry_file()
    try:
        return Registry.model_validate_json(file.read_text(encoding="utf-8")).models
    except FileNotFoundError:
        return {}
    except (ValidationError, UnicodeDecodeError) as error:
        reason = (
            error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else "not text"
        )
        raise refuse(
            "models", str(file), f"is damaged ({reason[:120]}); mend it, or delete it and add again"
        ) from error


def write_registry(models: dict[str, Remembered]) -> None:
    file = registry_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, Registry(models=dict(sorted(models.items()))).model_dump_json(indent=1))


def remember(name: str, entry: Remembered, taken: set[str]) -> None:
    """Under a new name; `taken` are names that mean something else already."""
    if not NAME.fullmatch(name):
        raise refuse(
            "name", name, "can't be a name; letters, digits and . _ + - are allowed, as in --name my-model"
        )
    models = read_registry()
    if name in taken:
        raise refuse("name", name, "is a built-in model; choose another name")
    if name in models and models[name].place != entry.place:
        raise refuse(
            "name", name, f"stands for {models[name].place}; choose another name, or remove it first"
        )
    write_registry({**models, name: entry})


def forget(name: str) -> Remembered:
    models = read_registry()
    if name not in models:
        raise unknown("name", name, models, "`sfumato models` lists the remembered ones")
    entry = models.pop(name)
    write_registry(models)
    return entry


def remembered_lora(name: str) -> Path | None:
    """The file of a LoRA that was remembered under this name."""
    entry = read_registry().get(name)
    if entry is None or not entry.is_lora:
        return None
    path = Path(entry.place)
    if not path.is_file():
        remedy = f"was {entry.place}, which is gone; `sfumato models remove {name}`, then add it anew"
        raise refuse("loras", name, remedy)
    return path


def locate(text: str, config: Path | None = None, field: str = "model") -> Located:
    """What a name stands for. Names that are not ours are given back as they are."""
    if Path(text).expanduser().exists():
        return Located(text)
    entry = read_registry().get(text)
    if entry is not None:
        if not hub.is_id(entry.place) and not Path(entry.place).exists():
            raise refuse(
                field,
                text,
                f"was {entry.place}, which is gone; `sfumato models remove {text}`, then add it anew",
            )
        return Located(entry.place, entry.parts)
    shared = find_shared(text, config)
    return Located(text if shared is None else str(shared))


def located(values: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """A request's values with model and parts as places, so that a record outlives the names of this machine."""
    if not isinstance(values.get("model"), str) or not values["model"]:
        return values
    found = locate(values["model"], config)
    parts = values.get("parts") or found.parts
    if isinstance(parts, str) and parts:
        return {**values, "model": found.place, "parts": locate(parts, config, "parts").place}
    return {**values, "model": found.place}
