"""euler-ancestral: Euler step to a cleaner time than asked for, then fresh noise up to it.

Paper: arXiv:2206.00364 (VE form, as in k-diffusion) and arXiv:2209.03003 (flow paths)
Shapes: x any shape; the batch axis is not used
Units and ranges: eta 0..1, share of fresh noise
Cost: 1 network evaluation per step
Neutral: none: a sampler replaces another (eta = 0 is ddim)
Errors: ValueError for eta outside 0..1
Differs: on VP and VE it equals k-diffusion and ddim with the same eta; on flow the step down is taken in flow sigma
    and the noise is scaled so that the marginals hold, as ComfyUI's euler_ancestral_RF does
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..protocols import Noise, Path, Predict, State
from ._common import at, decay


@dataclass(frozen=True)
class EulerAncestral:
    """Down to a share of sigma_u, then up again with fresh noise."""

    eta: float = 1.0
    """Share of fresh noise, 0..1."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in 0..1, got {self.eta}")

    def __call__(self, predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise) -> State:
        p = predict(state.x, t)
        a, s = at(path, u)
        if path.name == "flow":
            low = s * (1 + (s / path.sigma(t) - 1) * self.eta)
            down = low * a / (1 - low)  # what is left of eps after scaling alpha back from 1 - low to a
        else:
            down = s * math.sqrt(1 - self.eta**2 * (1 - decay(path, t, u) ** 2))
        up = math.sqrt(max(s * s - down * down, 0.0)) if self.eta > 0 else 0.0
        x = a * p.x0 + down * p.eps
        return State(x + up * noise() if up > 0 else x)
