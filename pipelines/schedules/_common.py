"""What the schedules share: the noise level in which a path's schedules are written, and the tail of the times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from ..protocols import Path

LARGEST = 4096.0
"""Noise level that stands for an infinite one (zero terminal SNR); diffusers uses the same, as a_bar = 2^-24."""


class Level(NamedTuple):
    """The noise level s of a path: sigma on flow, sigma / alpha on VP and VE."""

    of: Callable[[float], float]
    time: Callable[[float], float]
    low: float
    """At path.last."""
    high: float
    """At path.start."""


def level(path: Path) -> Level:
    """The noise level of this path and its range over the trained times."""

    def of(t: float) -> float:
        if path.name == "flow":
            return path.sigma(t)
        a = path.alpha(t)
        return min(path.sigma(t) / a, LARGEST) if a > 0 else LARGEST

    def time(s: float) -> float:
        if path.name == "flow":
            return flow_time(path, s)
        return path.end if s <= 0 else path.time_of(-math.log(s))

    return Level(of, time, of(path.last), of(path.start))


def flow_time(path: Path, s: float) -> float:
    """The time at which sigma / (alpha + sigma), the sigma of a flow path, is s."""
    if s >= 1:
        return path.start
    return path.end if s <= 0 else path.time_of(math.log1p(-s) - math.log(s))


def check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")


def finish(times: Sequence[float], path: Path) -> list[float]:
    """The times of the steps with the end after them; a list that reaches the end by itself ends at sigma = 0."""
    ts = [min(t, path.start) for t in times]
    ts.append(path.end if ts[-1] > path.end else 0.0)
    if any(b >= a for a, b in pairwise(ts)):
        raise ValueError(f"{len(ts) - 1} steps are too many for this schedule and path: times repeat")
    return ts


def ramp(n: int) -> list[float]:
    """n even values from 0 to 1; one value is 0."""
    return [i / (n - 1) for i in range(n)] if n > 1 else [0.0]
