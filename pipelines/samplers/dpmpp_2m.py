"""dpmpp-2m: DPM-Solver++(2M), second-order multistep for the ODE in half-log-SNR.

Paper: arXiv:2211.01095, algorithm 2
Shapes: x any shape; the batch axis is not used
Units and ranges: no settings
Cost: 1 network evaluation per step and 1 tensor like x
Neutral: none: a sampler replaces another
Errors: none
Differs: written with ratios, so alpha = 0 and sigma = 0 are finite; the first step, a step out of alpha = 0, the one
    after it and the step into sigma = 0 are first order
Tasks: image, video, 3d
"""

from __future__ import annotations

from ..protocols import Noise, Path, Predict, State
from ._common import at, decay, secant


def dpmpp_2m(predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise) -> State:
    """x_u = alpha_u d + sigma_u eps + alpha_u exp(-h) (x0 - d), with d extrapolated from two clean estimates."""
    p = predict(state.x, t)
    b, r = at(path, u)
    x0 = p.x0
    d = x0 + secant(path, t, u, state.times[0]) * (x0 - state.memory[0]) if state.memory else x0
    x = b * d + r * p.eps + b * decay(path, t, u) * (x0 - d)
    return State(x, (x0,), (t,))
