"""heun: second-order step, an Euler step corrected with the slope at its end.

Paper: arXiv:2206.00364, algorithm 1 (without churn)
Shapes: x any shape; the batch axis is not used
Units and ranges: no settings
Cost: 2 network evaluations per step, 1 where the step ends at sigma = 0
Neutral: none: a sampler replaces another
Errors: none
Differs: the slope is d(x / alpha) / d(sigma / alpha) on VP and VE and dx / dsigma on flow; a step that starts at
    alpha = 0 uses d(x / (alpha + sigma)), which is finite. Under CFG++ the correction acts on eps alone
Tasks: image, video, 3d
"""

from __future__ import annotations

from ..protocols import Noise, Path, Predict, State
from ._common import at


def heun(predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise) -> State:
    """The trapezoid rule for the probability-flow ODE."""
    p = predict(state.x, t)
    (a, s), (b, r) = at(path, t), at(path, u)
    x = b * p.x0 + r * p.eps
    if r == 0:
        return State(x)
    q = predict(x, u)
    if path.name == "flow" or a == 0:
        half = (b + r) * (r / (b + r) - s / (a + s)) / 2
        return State(x + half * ((q.eps - q.x0) - (p.eps - p.x0)))
    half = b * (r / b - s / a) / 2
    return State(x + half * (q.eps - p.eps))
