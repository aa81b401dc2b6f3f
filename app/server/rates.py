"""How often one token may ask: a bucket that fills again at an even pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

MOST_NAMES = 10_000
"""Full buckets are forgotten beyond so many."""


@dataclass
class Rate:
    """`per_minute` requests, which may come at once."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Name to what is left in its bucket, and when that was."""

    def wait(self, name: str) -> float:
        """Takes one and returns 0, or the seconds until there is one again."""
        now, pace = self.clock(), self.per_minute / 60
        left, then = self._left.get(name, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - then) * pace)
        if left < 1:
            self._left[name] = (left, now)
            return (1 - left) / pace
        if len(self._left) > MOST_NAMES:
            self._left.clear()
        self._left[name] = (left - 1, now)
        return 0.0
