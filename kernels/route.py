"""Units of a network's weights, and the order in which its calls come to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

PASSING = 4
"""The part of a budget that is kept for layers that pass through, at least two of them."""


class Cargo(Protocol):
    """A layer's weights. Loading and dropping are never called at the same time for one layer."""

    @property
    def nbytes(self) -> int: ...

    def load(self) -> None: ...

    def drop(self) -> None: ...


@dataclass(eq=False)
class Unit:
    """Layers that come and go together."""

    name: str
    cargo: Cargo
    nbytes: int
    busy: int = 0
    ready: bool = False
    loaded: torch.cuda.Event | None = None
    """On the side stream, after the weights' arrival."""
    used: torch.cuda.Event | None = None
    """On the stream that computes, after the last use."""


@dataclass
class Tally:
    """What moving cost."""

    loads: int = 0
    waits: int = 0
    """Loads that nobody had asked for in time."""
    waited: float = 0.0
    """Seconds."""
    peak: int = 0
    """Most bytes held at once."""


@dataclass(eq=False)
class Route:
    """The units of one network in the order of its last call, and how far the call at hand is."""

    units: list[Unit]
    seen: list[Unit] = field(default_factory=list)
    running: int = 0
    budget: int = 0
    uses: dict[Unit, list[int]] = field(default_factory=dict)
    stays: set[Unit] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.index()

    def index(self) -> None:
        """Which units stay, and when each is used."""
        self.uses = {}
        for i, unit in enumerate(self.units):
            self.uses.setdefault(unit, []).append(i)
        whole = sum(unit.nbytes for unit in self.uses)
        passing = max(2 * max((unit.nbytes for unit in self.uses), default=0), self.budget // PASSING)
        room = self.budget if whole <= self.budget else max(0, self.budget - passing)
        self.stays, credit = set(), 0.0
        for unit in self.uses:
            credit += unit.nbytes * room / max(1, whole)
            if unit.nbytes <= credit:
                self.stays.add(unit)
                credit -= unit.nbytes

    def begin(self) -> None:
        self.running += 1
        self.seen = []

    def end(self) -> None:
        self.running -= 1
        if self.running == 0 and self.seen and self.seen != self.units:
            missing = [unit for unit in self.units if unit not in set(self.seen)]
            self.units = [*self.seen, *missing]
            self.index()
        self.seen = []

    def distance(self, unit: Unit) -> int:
        """Units until this one is used next; a network at rest begins anew."""
        at, length = len(self.seen), len(self.units)
        return min((i - at) % length for i in self.uses[unit])
