"""What goes to a worker and what comes back: plain values, so that the worker may be on another machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Unit(NamedTuple):
    """What is made or not made as a whole."""

    row: str
    """The id of its row."""
    image: int
    """Which of the row's pictures; 0 where a row is made in one."""


class Asked(NamedTuple):
    """A row for a worker."""

    id: str
    task: str
    request: Mapping[str, Any]
    """As JSON has it."""


class Group(NamedTuple):
    """What a worker does in one go."""

    units: tuple[Unit, ...]
    asked: tuple[Asked, ...]
    """The rows of the units, each once."""
    cost: int = 1
    """Steps in all, for the time left."""


class File(NamedTuple):
    name: str
    media: str
    data: bytes


class Made(NamedTuple):
    unit: Unit
    files: tuple[File, ...]
    about: Mapping[str, Any] = {}
    """Seed, seconds."""
    notes: tuple[str, ...] = ()
    together: int = 1
    """Pictures that were sampled in one batch with it, itself included."""


class Fault(NamedTuple):
    """Why a unit, or a row that was looked at, can't be made."""

    unit: Unit
    code: int
    sentence: str


class Look(NamedTuple):
    """What a worker says of a row before anything runs."""

    id: str
    model: tuple[str, ...] = ()
    """What must be open for it; empty if nothing."""
    alike: tuple[str, ...] = ()
    """Per picture, what must be the same of those that are sampled together; empty where each is made alone."""
    words: tuple[tuple[str, str, str], ...] = ()
    """Per picture, prompt and negative prompt as they are encoded, and the LoRAs that act on the encoder."""
    guided: bool = True
    """Whether the negative prompt is encoded too."""
    steps: int = 1
    most: int = 1
    """Pictures of this size that are sampled at once."""


class Counts(NamedTuple):
    """What a worker did."""

    loads: int = 0
    encodings: int = 0


class Answer(NamedTuple):
    """A group's results, and who made them."""

    group: Group
    results: Sequence[Made | Fault]
    worker: str = ""


class Engine(Protocol):
    """Who has groups made: here, or on a cluster."""

    def look(self, rows: Sequence[Asked], per_batch: int) -> list[Look | Fault]: ...

    def run(
        self, groups: Sequence[Group], stopped: Callable[[], bool], within: Callable[[int], None]
    ) -> Iterator[Answer]:
        """Answers as they come. Ends early once `stopped`; `within` is told the steps done of a group in hand."""
        ...

    def counts(self) -> Counts: ...

    def close(self) -> None: ...
