"""The times of Wan's solver."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipelines.families._schedules import TRAINED, pushed
from ...pipelines.protocols import Path

START = 1 - 1e-6
"""Where the log of the signal is finite: UniPC with flow sigmas begins here."""


@dataclass(frozen=True)
class SolverSteps:
    """Even levels from 1 to the last trained one, which is left out, then shifted: a UniPC with flow sigmas."""

    shift: float

    def __call__(self, steps: int, path: Path) -> list[float]:
        even = [1 - i / steps * (1 - 1 / TRAINED) for i in range(steps)]
        return [*(min(pushed(level, self.shift), START) for level in even), path.end]
