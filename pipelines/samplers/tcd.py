"""tcd: trajectory consistency sampling; each step lands cleaner than asked for and noises up to it.

Paper: arXiv:2402.19159, algorithm 3 (strategic stochastic sampling)
Shapes: x any shape; the batch axis is not used
Units and ranges: gamma 0..1, share of the time that is re-noised
Cost: 1 network evaluation per step
Neutral: none: a sampler replaces another (gamma = 0 is ddim, gamma = 1 is lcm)
Errors: ValueError for gamma outside 0..1
Differs: the last step ends at path.end, where diffusers always ends at training step 0
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..protocols import Noise, Path, Predict, State
from ._common import at


@dataclass(frozen=True)
class Tcd:
    """Down to (1 - gamma) u along the trajectory, up to u with fresh noise."""

    gamma: float = 0.3
    """Share of the time that is re-noised, 0..1; more for few steps or strong guidance."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in 0..1, got {self.gamma}")

    def __call__(self, predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise) -> State:
        p = predict(state.x, t)
        a, s = at(path, u)
        if u <= path.end:
            return State(a * p.x0 + s * p.eps)
        b, r = at(path, self._landing(u, path))
        x = b * p.x0 + r * p.eps
        up = math.sqrt(max(s * s - (a / b * r) ** 2, 0.0)) if self.gamma > 0 else 0.0
        return State(a / b * x + up * noise() if up > 0 else a / b * x)

    def _landing(self, u: float, path: Path) -> float:
        """(1 - gamma) u; on a path with training steps, a whole step, rounded down as in the reference code."""
        if path.grid is None or u < path.last or self.gamma == 0:
            return (1 - self.gamma) * u
        step = (1 - self.gamma) * (u * path.grid - 1)
        return (math.floor(step + 1e-6) + 1) / path.grid
