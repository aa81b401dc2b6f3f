"""The door to checkpoints: a built-in name, a folder in diffusers layout, a single file or a pulled model of the Hub
becomes a Model.

Which family opens a folder is decided by its model_index.json alone. Families are found by walking families/:
a new one is one file there. Nothing is ever fetched, and nothing outside the model folder is read. How a single file
stands in for a folder: doors/.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from .doors import hub
from .doors.single_file import as_folder, check_ending
from .errors import BadInput, BadWeights
from .protocols import Model
from .weights import read_json

MODELS = Path(__file__).parent.parent / "assets" / "models"
INDEX = "model_index.json"


class Family(Protocol):
    """What a module of families/ offers as its one public class."""

    pipelines: tuple[str, ...]

    def recognise(self, index: Mapping[str, Any]) -> bool: ...

    def load(self, folder: Path, dtype: torch.dtype, device: torch.device) -> Model: ...


def open_model(
    reference: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    parts: str | Path | None = None,
    among: Sequence[Family] | None = None,
    offload: int = 0,
) -> Model:
    """Open a built-in model by name, a checkpoint folder in diffusers layout, a pulled `owner/name`, or a single file.

    A single file takes tokenizers, and what else it lacks, from the folder `parts`. `among` are the families to ask;
    those of pictures if not given. `offload` is how many bytes of weights are held in memory at once, while the others
    rest in their files; 0 holds all.
    """
    place, target = find_model(reference), _device(device)
    if offload:
        from .placement import placing

        with placing(offload, target):
            return open_model(reference, dtype=dtype, device=device, parts=parts, among=among)
    if not place.is_dir():
        check_ending(place)
        beside = None if parts is None else find_folder(parts, "parts")
        if beside is not None:
            check_contained(beside)
        with as_folder(place, beside) as folder:
            return _load(folder, dtype, target, among)
    if parts is not None:
        raise BadInput("parts", f"{place} is a folder, which has all of its parts; leave --parts out")
    check_contained(place)
    return _load(place, dtype, target, among)


def _load(folder: Path, dtype: torch.dtype, device: torch.device, among: Sequence[Family] | None) -> Model:
    index, known = read_json(folder / INDEX), families() if among is None else among
    for family in known:
        if family.recognise(index):
            return family.load(folder, dtype, device)
    name, names = str(index.get("_class_name"))[:80], [name for family in known for name in family.pipelines]
    near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.3)) or ", ".join(sorted(names)[:3])
    raise BadInput(
        "model",
        f"{folder} holds a {name!r}, which is not supported; the nearest that are: {near} "
        "(`sfumato models` lists all families)",
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise BadInput(
            "device", f"device = {device!r} is unknown; use cpu, cuda, cuda:1, mps or xpu"
        ) from error


def find_model(reference: str | Path, field: str = "model") -> Path:
    """The folder or file that a reference names. A name without slashes is one here or a built-in model."""
    path = Path(reference).expanduser()
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise BadInput(field, f"{path} has no {INDEX}; give a model folder in diffusers layout")
        return path.resolve()
    text = str(reference)
    if path.is_file():
        return path.absolute()
    if isinstance(reference, str) and os.sep not in text and "/" not in text:
        return builtin_folder(text, field)
    pulled = hub.pulled(text)
    if pulled is not None:
        return pulled
    way = (
        f", and none was pulled; `sfumato models pull {text}` downloads it"
        if hub.is_id(text)
        else "; check the path"
    )
    raise BadInput(field, f"there is no file or folder {text!r}{way}")


def find_folder(reference: str | Path, field: str = "model") -> Path:
    """The folder that a reference names."""
    place = find_model(reference, field)
    if place.is_dir():
        return place
    raise BadInput(field, f"{place} is a file; give a model folder in diffusers layout")


def builtin_names() -> list[str]:
    """The models that came with the installation."""
    if not MODELS.is_dir():
        return []
    return sorted(folder.name for folder in MODELS.iterdir() if (folder / INDEX).is_file())


def builtin_folder(name: str, field: str = "model") -> Path:
    names = builtin_names()
    if name in names:
        return (MODELS / name).resolve()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names
    listed = f"the nearest are {', '.join(near)}" if near else "none are installed"
    raise BadInput(field, f"there is no file, folder or built-in model called {name!r}; {listed}")


def check_contained(folder: Path) -> None:
    """Refuse links out of the model folder, and pipes and devices in it, which could keep a reader waiting for ever.

    The Hub's own cache, snapshots beside blobs, is let through.
    """
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    for home, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(home, name)
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
                raise BadWeights(
                    f"{path} links to {path.resolve()}, outside the model folder; replace it by a copy"
                )
            if path.exists() and not path.is_file() and not path.is_dir():
                raise BadWeights(f"{path} is neither file nor folder; remove it")


def families(name: str = f"{__package__}.families") -> list[Family]:
    """One object per module of a package of families, in the order of their names."""
    package = importlib.import_module(name)
    found: list[Family] = []
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        if not module.name.startswith("_"):
            found.append(_family(importlib.import_module(f"{package.__name__}.{module.name}")))
    return found


def _family(module: Any) -> Family:
    public = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type) and not name.startswith("_") and value.__module__ == module.__name__
    ]
    if len(public) != 1:
        raise TypeError(f"{module.__name__} must have one public class, not {len(public)}")
    family: Family = public[0]()
    return family
