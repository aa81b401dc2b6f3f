"""Techniques by id: the smallest lookup that the model defaults need. The full catalogue is app's."""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import Any

from .errors import BadInput

KINDS = ("samplers", "schedules", "guidance", "wraps", "patches", "converts")


def technique(kind: str, id: str) -> Any:
    """The one public object of the file in pipelines/`kind` whose docstring begins with `id` and a colon."""
    if kind not in KINDS:
        raise BadInput("kind", f"kind = {kind!r} is no folder of techniques; known are {', '.join(KINDS)}")
    found = technique_ids(kind)
    if id not in found:
        near = difflib.get_close_matches(id, found, n=3, cutoff=0.3) or sorted(found)
        raise BadInput(kind, f"{kind} has no technique {id!r}; the nearest are {', '.join(near)}")
    module = importlib.import_module(f"{__package__}.{kind}.{found[id]}")
    public = [
        value
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and value.__module__ == module.__name__
    ]
    if len(public) != 1:
        raise TypeError(f"{module.__name__} must have one public object, not {len(public)}")
    return public[0]


def with_defaults(kind: str, id: str) -> Any:
    """The technique ready for use: a dataclass with its default settings, or the function itself."""
    found = technique(kind, id)
    return found() if isinstance(found, type) else found


def technique_ids(kind: str) -> dict[str, str]:
    """Ids to module names, read from the sources without importing them."""
    folder = Path(__file__).parent / kind
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        if module.name.startswith("_"):
            continue
        text = ast.get_docstring(ast.parse((folder / f"{module.name}.py").read_text(encoding="utf-8"))) or ""
        id, colon, _ = text.split("\n", 1)[0].partition(":")
        if colon:
            found[id.strip()] = module.name
    return found
