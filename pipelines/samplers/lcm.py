"""lcm: consistency-model sampling; each step jumps to a clean estimate and noises it again.

Paper: arXiv:2310.04378, algorithm 3 (consistency models: arXiv:2303.01469, algorithm 1)
Shapes: x any shape; the batch axis is not used
Units and ranges: no settings
Cost: 1 network evaluation per step
Neutral: none: a sampler replaces another
Errors: none
Differs: without the c_skip and c_out of training time, which change x0 by less than 1e-5 at t above 0.02
Tasks: image, video, 3d
"""

from __future__ import annotations

from ..protocols import Noise, Path, Predict, State
from ._common import at


def lcm(predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise) -> State:
    """x_u = alpha_u x0 + sigma_u noise; the last step returns x0."""
    p = predict(state.x, t)
    if u <= path.end:
        return State(p.x0)
    a, s = at(path, u)
    return State(a * p.x0 + s * noise())
