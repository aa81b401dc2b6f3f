"""karras: noise levels evenly spaced in their rho-th root, dense near the data.

Paper: arXiv:2206.00364, eq. 5
Shapes: steps + 1 falling floats
Units and ranges: rho 1..20; sigma_min and sigma_max in the path's noise level (sigma on flow, sigma / alpha on
    VP and VE), 0 = the path's own
Cost: no network evaluations
Neutral: none: a schedule replaces another
Errors: ValueError for a setting outside its range
Differs: times are not rounded to training steps
Tasks: image, video, 3d
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocols import Path
from ._common import check_steps, finish, level, ramp


@dataclass(frozen=True)
class Karras:
    """s_i = (s_max^(1/rho) + i/(n-1) (s_min^(1/rho) - s_max^(1/rho)))^rho, then the end."""

    rho: float = 7.0
    """Curvature, 1..20; 1 is even in the noise level."""
    sigma_min: float = 0.0
    """Lowest noise level before the end, 0 and up; 0 = the path's own."""
    sigma_max: float = 0.0
    """Highest noise level, above sigma_min; 0 = the path's own."""

    def __post_init__(self) -> None:
        if not 1 <= self.rho <= 20:
            raise ValueError(f"rho must be in 1..20, got {self.rho}")
        if self.sigma_min < 0 or (self.sigma_max != 0 and self.sigma_max <= self.sigma_min):
            raise ValueError(
                f"need 0 <= sigma_min < sigma_max or 0, got {self.sigma_min} and {self.sigma_max}"
            )

    def __call__(self, steps: int, path: Path) -> list[float]:
        check_steps(steps)
        s = level(path)
        low, high = (self.sigma_min or s.low) ** (1 / self.rho), (self.sigma_max or s.high) ** (1 / self.rho)
        times = [s.time((high + f * (low - high)) ** self.rho) for f in ramp(steps)]
        return finish(times if self.sigma_max else [path.start, *times[1:]], path)
