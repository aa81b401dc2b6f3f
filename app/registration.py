"""Models and LoRAs put under names of one's own, where they lie: nothing is copied, loaded or fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..pipelines.doors import hub
from ..pipelines.errors import SfumatoError
from .checks import model_hashes
from .faults import refuse
from .inspection import builtin_models, inspect_folder, inspect_weights, told_kind
from .registry import Remembered, locate, remember


class Added(NamedTuple):
    name: str
    entry: Remembered


def add(
    place: str,
    *,
    name: str | None = None,
    parts: str | None = None,
    hashed: bool = True,
    say: Callable[[str], object] | None = None,
) -> Added:
    """Remember a settled place; without a name, under that of its file or folder. `parts` is settled too.

    Headers alone are read, unless it is `hashed`. Refused: what is no model and no LoRA, pickles, names that are taken.
    """
    kind, role = told_kind(about(place))
    if parts is not None and role not in ("checkpoint", "network"):
        raise refuse("parts", parts, "is for single files that are models; leave --parts out")
    if hashed and say is not None:
        say(f"taking the hash of {place}")
    hashes = model_hashes(path_of(place)) if hashed else {}
    entry = Remembered(place=place, parts=parts, kind=kind, role=role, hashes=hashes)
    chosen = name or usual_name(place)
    remember(chosen, entry, {model["name"] for model in builtin_models()})
    return Added(chosen, entry)


def settled(text: str) -> str:
    """A remembered name, path or Hub id as an absolute path or `owner/name@commit`."""
    found = locate(text, field="path").place
    path = Path(found).expanduser()
    if path.exists():
        return str(path.absolute())
    if not hub.is_id(found):
        raise refuse("path", text, "does not exist; give a file, a folder, or owner/name of a pulled model")
    return pinned(found)


def pinned(id: str) -> str:
    """`owner/name[@revision]` of a pulled model, as `owner/name@commit`."""
    reference, folder = hub.parse(id), hub.pulled(id)
    if reference is None or folder is None:
        raise refuse("path", id, f"is no file, and was not pulled; `sfumato models pull {id}` downloads it")
    return f"{reference.repository}@{folder.name}"


def path_of(place: str) -> Path:
    """Where the files of a settled place are."""
    found = place_of(place)
    if found is None:
        raise refuse("path", place, "is gone; pull it again, or remove the name")
    return found


def place_of(place: str) -> Path | None:
    """The same; None if they are gone."""
    path = Path(place)
    try:
        return path if path.exists() else hub.pulled(place)
    except SfumatoError:  # a pull without weights
        return None


def about(place: str) -> dict[str, Any]:
    """What the headers of a settled place tell."""
    path = path_of(place)
    return inspect_folder(path) if path.is_dir() else inspect_weights(path, hashed=False)


def usual_name(place: str) -> str:
    """That of its file or folder, or of the repository."""
    path, reference = Path(place), hub.parse(place)
    if reference is not None and not path.exists():
        return reference.repository.partition("/")[2]
    return path.name if path.is_dir() else path.stem
