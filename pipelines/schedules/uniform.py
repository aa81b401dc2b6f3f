"""uniform: times evenly spaced, in the three ways in use.

Paper: arXiv:2305.08891, table 2 (leading, linspace, trailing)
Shapes: steps + 1 falling floats
Units and ranges: spacing, one of trailing, leading, linspace; offset in training steps, 0 and up, for leading
Cost: no network evaluations
Neutral: none: a schedule replaces another
Errors: ValueError for an unknown spacing, a negative offset, leading on a path without training steps, or more
    steps than training steps
Differs: on paths with training steps the times are rounded to them, as diffusers does in DDIM and, for trailing
    and leading, in Euler; its multistep solvers count leading and linspace with one step more, and its DDIM steps
    to t - N // steps instead of the next time. linspace on flow ends at path.sigma(path.last), which repeats the
    shift as SD3's own code does
Tasks: image, video, 3d
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..protocols import Path
from ._common import check_steps, finish, ramp


@dataclass(frozen=True)
class Uniform:
    """trailing begins at pure noise, leading is what Stable Diffusion came with, linspace has both ends."""

    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    """Which way to space the times."""
    offset: int = 1
    """Training steps added under leading, 0 and up; Stable Diffusion checkpoints say 1."""

    def __post_init__(self) -> None:
        if self.spacing not in ("trailing", "leading", "linspace"):
            raise ValueError(f"spacing must be trailing, leading or linspace, got {self.spacing!r}")
        if self.offset < 0:
            raise ValueError(f"offset must be 0 or more, got {self.offset}")

    def __call__(self, steps: int, path: Path) -> list[float]:
        check_steps(steps)
        if path.grid is None:
            return self._continuous(steps, path)
        n = path.grid
        if steps > n:
            raise ValueError(f"steps must be in 1..{n}, the path's training steps, got {steps}")
        if self.spacing == "leading":
            ks = [i * (n // steps) + self.offset for i in reversed(range(steps))]
        elif self.spacing == "trailing":
            ks = [round(n - i * (n / steps)) - 1 for i in range(steps)]
        else:
            ks = [round((n - 1) * f) for f in (ramp(steps)[::-1] if steps > 1 else [0.0])]
        return finish([(min(k, n - 1) + 1) / n for k in ks], path)

    def _continuous(self, steps: int, path: Path) -> list[float]:
        if self.spacing == "leading":
            raise ValueError(
                f"leading needs training steps, which the {path.name} path has none of: use trailing"
            )
        if self.spacing == "trailing":
            return finish([path.start + i / steps * (path.end - path.start) for i in range(steps)], path)
        low = path.sigma(path.last) if path.name == "flow" else path.last
        return finish([path.start + f * (low - path.start) for f in ramp(steps)], path)
