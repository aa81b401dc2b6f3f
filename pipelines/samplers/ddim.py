"""ddim: first-order step; the same as Euler on flow and VE paths (alias euler).

Paper: arXiv:2010.02502, eq. 12 and 16
Shapes: x any shape; the batch axis is not used
Units and ranges: eta 0..1, share of the posterior noise put back in each step
Cost: 1 network evaluation per step
Neutral: none: a sampler replaces another (eta = 0 is deterministic and draws no noise)
Errors: ValueError for eta outside 0..1
Differs: eq. 16 is written with the ratio of alpha / sigma, so that eta works on any path
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..protocols import Noise, Path, Predict, State
from ._common import at, decay


@dataclass(frozen=True)
class Ddim:
    """x_u = alpha_u x0 + sigma_u eps, with eps partly renewed if eta > 0."""

    eta: float = 0.0
    """Share of the posterior noise, 0..1; 0 is the ODE, 1 the ancestral chain."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in 0..1, got {self.eta}")

    def __call__(self, predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise) -> State:
        p = predict(state.x, t)
        a, s = at(path, u)
        up = self.eta * s * math.sqrt(1 - decay(path, t, u) ** 2)
        x = a * p.x0 + math.sqrt(s * s - up * up) * p.eps
        return State(x + up * noise() if up > 0 else x)
