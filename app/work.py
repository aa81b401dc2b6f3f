"""What a task is given beside its request: how it is watched and stopped, where it resumes, where results go.

A task is a function `(request, work) -> Outcome`. The command line and the job runner each bring their own `Work`, so a
task is written once and knows neither. It calls `phase` as it goes from one part of its work to the next, `checkpoint`
after each step that it could resume from, and `keep` for each finished result; all of them are cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

from .requests import Request
from .shelf import Shelf

if TYPE_CHECKING:
    from PIL import Image

Write = Callable[[BinaryIO], object]
"""Writes a result into an open file."""


class Artifact(NamedTuple):
    """A result and what to say about it."""

    name: str
    """A file name, unlike those of the other results of this request."""
    media: str
    """As image/png."""
    record: Mapping[str, Any]
    """How it was made; the same for two runs of the same request on the same machine."""
    about: Mapping[str, Any] = {}
    """What else there is to tell, such as its seed and seconds."""


class Outcome(NamedTuple):
    """What there is to tell at the end."""

    request: Request
    """With nothing left open."""
    model: Mapping[str, Any] = {}
    """What was opened, with the hashes of its weights."""
    notes: tuple[str, ...] = ()


class Work(Protocol):
    @property
    def shelf(self) -> Shelf:
        """Where opened models are kept."""
        ...

    @property
    def device(self) -> str:
        """What a request's `auto` means here; `auto` where nothing is settled."""
        ...

    def cancelled(self) -> bool:
        """Whether to stop. Asked before each network call."""
        ...

    def phase(self, name: str) -> None:
        """load, encode, sample, decode or write begins. May raise pipelines.stopping.Stopped."""
        ...

    def progress(self, step: int, steps: int) -> None: ...

    def preview(self, step: int, render: Callable[[], Image.Image]) -> None:
        """A picture of the result so far, which is computed only if someone wants it."""
        ...

    def about(self) -> Mapping[str, Any]:
        """What a checkpoint must carry, beside the run itself, for its reader to find the way back."""
        ...

    def checkpoint(self, save: Callable[[Path], object], step: int, steps: int) -> None:
        """The run can go on from here: `save` writes a file, should it be wanted. The last step's always is."""
        ...

    def saved(self) -> Path | None:
        """The file that an earlier, interrupted run left."""
        ...

    def keep(self, artifact: Artifact, write: Write) -> None:
        """Take a finished result: whole or not at all. The same name again replaces it."""
        ...

    def kept(self) -> Collection[str]:
        """Names of the results that an earlier, interrupted run has kept already."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...


Job = Callable[[Any, Work], Outcome]
"""A task's function; the first argument is its own kind of request."""
