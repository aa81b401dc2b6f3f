"""The door to checkpoints: a built-in name or a folder in diffusers layout becomes a Model.

Which family opens a folder is decided by its model_index.json alone. Families are found by walking families/:
a new one is one file there. Nothing is ever fetched, and nothing outside the model folder is read.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

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
    reference: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Model:
    """Open a built-in model by name, or a checkpoint folder in diffusers layout."""
    folder = find_folder(reference)
    check_contained(folder)
    index = read_json(folder / INDEX)
    for family in families():
        if family.recognise(index):
            return family.load(folder, dtype, _device(device))
    known = ", ".join(sorted(name for family in families() for name in family.pipelines))
    raise BadInput(
        "model", f"{folder} holds a {index.get('_class_name')!r}, which is not supported; supported: {known}"
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise BadInput(
            "device", f"device = {device!r} is unknown; use cpu, cuda, cuda:1, mps or xpu"
        ) from error


def find_folder(reference: str | Path) -> Path:
    """The folder that a reference names. A name without slashes is a folder here or a built-in model."""
    path = Path(reference).expanduser()
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise BadInput("model", f"{path} has no {INDEX}; give a model folder in diffusers layout")
        return path.resolve()
    if path.is_file():
        raise BadInput(
            "model",
            f"{path} is a file; convert it to a diffusers folder (`from_single_file`, `save_pretrained`)",
        )
    text = str(reference)
    if isinstance(reference, str) and os.sep not in text and "/" not in text:
        return builtin_folder(text)
    raise BadInput(
        "model", f"there is no folder {text!r}; download it first (`hf download {text} --local-dir FOLDER`)"
    )


def builtin_names() -> list[str]:
    """The models that came with the installation."""
    if not MODELS.is_dir():
        return []
    return sorted(folder.name for folder in MODELS.iterdir() if (folder / INDEX).is_file())


def builtin_folder(name: str) -> Path:
    names = builtin_names()
    if name in names:
        return (MODELS / name).resolve()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names
    listed = f"the nearest are {', '.join(near)}" if near else "none are installed"
    raise BadInput("model", f"there is no folder and no built-in model called {name!r}; {listed}")


def check_contained(folder: Path) -> None:
    """Refuse links out of the model folder. The Hub's own cache, snapshots beside blobs, is let through."""
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


def families() -> list[Family]:
    """One object per module of families/, in the order of their names."""
    package = importlib.import_module(f"{__package__}.families")
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
