"""The last opened model, kept for the next request that names the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipelines.protocols import Model

SUFFIXES = (".safetensors", ".gguf", ".json", ".txt", ".model")
"""Files that make a model."""


@dataclass
class Shelf:
    """Holds one model: two at once may not fit, and planning for that is not done here."""

    key: tuple[Any, ...] = ()
    model: Model | None = None

    def take(self, key: tuple[Any, ...], places: tuple[Path, ...], make: Callable[[], Model]) -> Model:
        """The model under this key, opened if it is another or its files have changed."""
        full = (*key, *(mark for place in places for mark in stamp(place)))
        if self.model is None or self.key != full:
            self.clear()  # the old one must not stay in memory beside the new one
            self.model, self.key = make(), full
        return self.model

    def clear(self) -> None:
        self.model, self.key = None, ()


def stamp(place: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every file of a model: they change when someone replaces its weights."""
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.suffix in SUFFIXES)
    return tuple((str(f), (about := f.stat()).st_mtime_ns, about.st_size) for f in files if f.is_file())
