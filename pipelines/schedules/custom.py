"""custom: times given one by one.

Paper: none, because the list is yours
Shapes: steps + 1 falling floats
Units and ranges: values, two or more falling numbers in `unit`: "t" path time; "ratio" sigma / alpha, the sigma
    of k-diffusion; "flow" sigma / (alpha + sigma); "step" training steps, to which the end is added
Cost: no network evaluations
Neutral: none: a schedule replaces another
Errors: ValueError for an unknown unit, values that rise or leave the path, or another number of steps
Differs: nothing
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..protocols import Path
from ._common import check_steps, flow_time


@dataclass(frozen=True)
class Custom:
    """The values, turned into times of the path."""

    values: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.0)
    """Falling numbers, one more than there are steps (as many as steps for unit "step")."""
    unit: Literal["t", "ratio", "flow", "step"] = "t"
    """What the values are."""

    def __post_init__(self) -> None:
        if self.unit not in ("t", "ratio", "flow", "step"):
            raise ValueError(f"unit must be t, ratio, flow or step, got {self.unit!r}")
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        falling = all(a > b for a, b in pairwise(self.values))
        if len(self.values) < (1 if self.unit == "step" else 2) or not falling or self.values[-1] < 0:
            raise ValueError(f"values must be falling and 0 or more, got {self.values}")

    def __call__(self, steps: int, path: Path) -> list[float]:
        check_steps(steps)
        ts = self._times(path)
        if len(ts) != steps + 1:
            raise ValueError(f"these values make {len(ts) - 1} steps, got steps = {steps}")
        if ts[0] > path.start or any(b >= a for a, b in pairwise(ts)):
            raise ValueError(f"times must fall within {path.end}..{path.start} on this path, got {ts}")
        return ts

    def _times(self, path: Path) -> list[float]:
        if self.unit == "t":
            return list(self.values)
        if self.unit == "flow":
            return [flow_time(path, s) for s in self.values]
        if self.unit == "ratio":
            return [path.end if s == 0 else path.time_of(-math.log(s)) for s in self.values]
        if path.grid is None:
            raise ValueError(f"unit step needs training steps, which the {path.name} path has none of")
        return [*((k + 1) / path.grid for k in self.values), path.end]
