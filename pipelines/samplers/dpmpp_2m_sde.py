"""dpmpp-2m-sde: DPM-Solver++(2M) for the reverse SDE.

Paper: arXiv:2211.01095, section 5 and appendix B (SDE-DPM-Solver++(2M), midpoint)
Shapes: x any shape; the batch axis is not used
Units and ranges: eta 0..2, strength of the noise; 1 is the paper's SDE
Cost: 1 network evaluation per step and 1 tensor like x
Neutral: none: a sampler replaces another (eta = 0 is dpmpp-2m)
Errors: ValueError for eta outside 0..2
Differs: eta from k-diffusion; independent draws per step instead of a Brownian tree, as diffusers does
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..protocols import Noise, Path, Predict, State
from ._common import at, decay, secant


@dataclass(frozen=True)
class Dpmpp2mSde:
    """Second-order multistep in which each step also forgets a part of eps and draws it anew."""

    eta: float = 1.0
    """Strength of the noise, 0..2; 0 is the ODE."""

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 2:
            raise ValueError(f"eta must be in 0..2, got {self.eta}")

    def __call__(self, predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise) -> State:
        p = predict(state.x, t)
        b, r = at(path, u)
        x0 = p.x0
        d = x0 + secant(path, t, u, state.times[0]) * (x0 - state.memory[0]) if state.memory else x0
        q = decay(path, t, u)
        kept = q**self.eta  # the share of eps that survives the step
        x = b * d + r * kept * p.eps + b * q * kept * (x0 - d)
        up = r * math.sqrt(1 - kept * kept)
        return State(x + up * noise() if up > 0 else x, (x0,), (t,))
