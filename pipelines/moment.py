"""Which step of which run is at hand, and which conditions a network call answers.

The loop says the step, the denoiser says the keys; techniques that remember something from step to step read both
here, for a network knows neither. Where nobody has said it (a network called by hand, score distillation with its
random times), there is no step, and nothing may be reused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")


@dataclass(frozen=True, eq=False)
class Step:
    """A whole step of the loop; a sampler may evaluate several times in it."""

    index: int
    """0-based; a resumed run goes on counting."""
    steps: int
    run: object
    """The same for all steps of one run, and for no other run."""


_STEP: ContextVar[Step | None] = ContextVar("sfumato_step", default=None)
_KEYS: ContextVar[tuple[str, ...]] = ContextVar("sfumato_keys", default=())


@contextmanager
def stepping(step: Step) -> Iterator[None]:
    """The loop is in this step."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


@contextmanager
def evaluating(keys: Sequence[str]) -> Iterator[None]:
    """The network answers the conditions with these keys, which share the batch in equal parts, in this order."""
    token = _KEYS.set(tuple(keys))
    try:
        yield
    finally:
        _KEYS.reset(token)


def step() -> Step | None:
    return _STEP.get()


def keys() -> tuple[str, ...]:
    return _KEYS.get()


class Memory(Generic[S]):
    """What a technique remembers in one run: one S for each condition's how-many-eth evaluation in a step.

    The second evaluation of a step (Heun's, or the second tile of a picture) remembers the second evaluation of the
    step before, never the first. A new run begins with nothing.
    """

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._kept: dict[tuple[str, int], S] = {}
        self._visits: Counter[str] = Counter()
        self.step: Step | None = None
        """The step of the evaluation at hand; None if nothing may be reused."""
        self.branches: list[S] = []
        """What is remembered for each key of the evaluation at hand, in the order of its rows."""

    def turn(self, keys: Sequence[str]) -> None:
        """An evaluation of these keys begins. To be called once for each."""
        now = step() if keys else None
        if now is None:
            self.step, self.branches = None, []
            return
        if self.step is None or now.run is not self.step.run:
            self._kept.clear()
        if self.step is None or now is not self.step:
            self._visits.clear()
        self.step, self.branches = now, []
        for key in keys:
            place = key, self._visits[key]
            self._visits[key] += 1
            if place not in self._kept:
                self._kept[place] = self._make()
            self.branches.append(self._kept[place])
