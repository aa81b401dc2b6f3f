"""linear-quadratic: many tiny even steps near pure noise, then steps that grow quadratically.

Paper: arXiv:2410.13720, section 3.4.2 (Movie Gen); the parabola is that of Mochi's published code
Shapes: steps + 1 falling floats
Units and ranges: threshold above 0 to 0.5, share of the way that the first half of the steps covers
Cost: no network evaluations
Neutral: threshold = 0.5 (even steps, if their number is even)
Errors: ValueError for a threshold outside its range, or steps below 1
Differs: sets sigma / (alpha + sigma), so it holds on every path; one step alone goes all the way
Tasks: image, video, 3d
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocols import Path
from ._common import check_steps, finish, flow_time


@dataclass(frozen=True)
class LinearQuadratic:
    """A line to `threshold` for half the steps, then the parabola that goes on with its slope and ends at 1."""

    threshold: float = 0.025
    """Share of the way that the first half of the steps covers, above 0 to 0.5; Mochi's value."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 0.5:
            raise ValueError(f"threshold must be above 0 to 0.5, got {self.threshold}")

    def __call__(self, steps: int, path: Path) -> list[float]:
        check_steps(steps)
        half = steps // 2
        if not half:
            return finish([path.start], path)
        slope, left = self.threshold / half, steps - half
        bend = (1 - self.threshold - slope * left) / left**2
        done = [i * slope + bend * max(i - half, 0) ** 2 for i in range(steps)]
        high = path.sigma(path.start) / (path.alpha(path.start) + path.sigma(path.start))
        times = [flow_time(path, high * (1 - share)) for share in done[1:]]
        return finish([path.start, *times], path)
