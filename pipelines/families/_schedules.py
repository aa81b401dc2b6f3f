"""Schedules that one family's training asks for and no catalogue lists. Each is a Schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..protocols import Path
from ..schedules.custom import Custom

TRAINED = 1000
"""Training steps of the flow models here."""


@dataclass(frozen=True)
class BothEnds:
    """Even levels from 1 to the last trained one, then shifted: what a diffusers flow pipeline takes by default.

    The last trained level is shifted too, so that the shift acts twice on it.
    """

    shift: float

    def __call__(self, steps: int, path: Path) -> list[float]:
        low = pushed(1 / TRAINED, self.shift)
        even = [1 + i * (low - 1) / max(steps - 1, 1) for i in range(steps)]
        return _times([pushed(level, self.shift) for level in even], steps, path)


@dataclass(frozen=True)
class Solver:
    """Even levels from the last but one training step to 0, then shifted: the solvers of diffusers on a flow path.

    Their half-log-SNR is finite at the start, so that their second step is of second order too.
    """

    shift: float

    def __call__(self, steps: int, path: Path) -> list[float]:
        top = 1 - 1 / TRAINED
        return _times([pushed(top * (1 - i / steps), self.shift) for i in range(steps)], steps, path)


@dataclass(frozen=True)
class WholeSteps:
    """Whole training steps from the noisiest to the first, then shifted (CogView4)."""

    shift: float

    def __call__(self, steps: int, path: Path) -> list[float]:
        apart = (1 - TRAINED) / max(steps - 1, 1)
        ks = [int(TRAINED + i * apart) for i in range(steps)]
        return _times([pushed(k / TRAINED, self.shift) for k in ks], steps, path)


@dataclass(frozen=True)
class Angles:
    """Even angles from pi / 2 to 0 on the circle x = cos(a) x0 + sin(a) eps; two steps stop at `middle` instead."""

    middle: float = 1.3

    def __call__(self, steps: int, path: Path) -> list[float]:
        angles = [math.pi / 2 * (1 - i / steps) for i in range(steps)]
        if steps == 2:
            angles[1] = self.middle
        return _times([math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles], steps, path)


@dataclass(frozen=True)
class Skipping:
    """Evenly spaced picks from the `original` training steps on which LCM and TCD were distilled, noisiest first."""

    original: int = 50

    def __call__(self, steps: int, path: Path) -> list[float]:
        n = path.grid or TRAINED
        if not 1 <= steps <= self.original:
            raise ValueError(f"steps must be in 1..{self.original}, on which it was distilled, got {steps}")
        distilled = [(i + 1) * (n // self.original) - 1 for i in reversed(range(self.original))]
        picked = [distilled[int(i * (self.original / steps))] for i in range(steps)]
        return Custom(tuple(picked), "step")(steps, path)


def pushed(level: float, shift: float) -> float:
    """A flow level, moved towards noise by a factor on its odds; 1 / shift moves it back."""
    return shift * level / (1 + (shift - 1) * level)


def _times(levels: list[float], steps: int, path: Path) -> list[float]:
    return Custom((*levels, 0.0), "flow")(steps, path)
