"""Which steps of a run are full, where those in between reuse what the last ones found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil


@dataclass(frozen=True)
class Spacing:
    """The first steps are full, then some of the others."""

    interval: int
    """Steps from one full step to the next, 1 and up."""
    start: float
    """Share of the steps that are full at first, 0..1; the first step always is."""
    power: float = 1.0
    """How much full steps crowd, 1 (evenly) to 4; p in arXiv:2312.00858, eq. 9 and 10."""
    center: int = -1
    """Step around which they crowd, 0 and up; -1 is the last of the first ones."""

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be 1 or more, got {self.interval}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"start must be in 0..1, got {self.start}")
        if not 1 <= self.power <= 4:
            raise ValueError(f"power must be in 1..4, got {self.power}")
        if self.center < -1:
            raise ValueError(f"center must be -1 or more, got {self.center}")
        if self.center >= 0 and self.power == 1:
            raise ValueError("with power = 1 nothing crowds around a center; give a power, as 1.3")

    def due(self, steps: int, now: int, last: int) -> bool:
        """Whether step `now` of so many is full, or a full one was missed after step `last`."""
        full = full_steps(self, steps)
        return now in full or max(step for step in full if step < now) > last


@lru_cache(maxsize=64)
def full_steps(spacing: Spacing, steps: int) -> frozenset[int]:
    """Of 0..steps - 1.

    Unevenly spaced ones are even after |step - center|^(1 / power) keeps the side, and back.
    """
    first = min(max(ceil(spacing.start * steps), 1), steps)
    if spacing.power == 1:
        return frozenset({*range(first), *range(first - 1, steps, spacing.interval)})
    begin, center = (first - 1, first - 1) if spacing.center < 0 else (0, spacing.center)
    low, high = (_bent(end - center, 1 / spacing.power) for end in (begin, steps))
    count = ceil((steps - begin) / spacing.interval)
    marks = (int(_bent(low + (high - low) * i / count, spacing.power)) + center for i in range(count))
    return frozenset({*range(first), *(min(max(mark, 0), steps - 1) for mark in marks)})


def _bent(value: float, exponent: float) -> float:
    return float((value > 0) - (value < 0)) * abs(value) ** exponent
