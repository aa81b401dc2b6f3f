"""unipc: UniPC, a multistep predictor with a corrector that costs no evaluation.

Paper: arXiv:2302.04867, algorithms 5 and 6 (data prediction, B(h) = exp(h) - 1)
Shapes: x any shape; the batch axis is not used
Units and ranges: order 1..3, order of the predictor; the corrector has one more
Cost: 1 network evaluation per step and order + 1 tensors like x
Neutral: none: a sampler replaces another
Errors: ValueError for an order outside 1..3
Differs: as in the reference code, the evaluation that corrects a step is the one that begins the next, so the last
    step is not corrected; order 3 is not lowered before a last step that does not end at sigma = 0
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..protocols import Noise, Path, Predict, State
from ._common import at, decay, lam


@dataclass(frozen=True)
class Unipc:
    """memory holds the corrected x of the last step, then its clean estimates, newest first."""

    order: int = 2
    """Order of the predictor, 1..3; 2 suits guided sampling."""

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be in 1..3, got {self.order}")

    def __call__(self, predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise) -> State:
        p = predict(state.x, t)
        a, s = at(path, t)
        x = a * p.x0 + s * p.eps  # state.x; under CFG++ the point re-noised with the negative's eps
        if state.memory:
            x = x + (_move(path, state.memory[0], state.memory[1:], state.times[1:], t, new=p.x0) - state.x)
        models = (p.x0, *state.memory[1 : self.order])
        times = (t, *state.times[1 : self.order])
        return State(_move(path, x, models, times, u), (x, *models), (t, *times))


def _move(
    path: Path,
    x: Tensor,
    models: Sequence[Tensor],
    times: Sequence[float],
    u: float,
    new: Tensor | None = None,
) -> Tensor:
    """x from times[0] to u with the clean estimates `models` (newest first); `new`, the one at u, corrects the move."""
    t, (b, r) = times[0], at(path, u)
    h = lam(path, u) - lam(path, t)
    gain = b * (1 - decay(path, t, u) if math.isinf(h) else -math.expm1(-h))
    moved = (r / path.sigma(t)) * x + gain * models[0]
    lams = [lam(path, v) for v in times]
    order = (
        1 if math.isinf(h) else max(n for n in range(1, len(lams) + 1) if all(map(math.isfinite, lams[:n])))
    )
    ratios = [(value - lams[0]) / h for value in lams[1:order]]
    slopes = [(m - models[0]) / ratio for m, ratio in zip(models[1:order], ratios, strict=True)]
    if new is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, new - models[0]]
    for weight, slope in zip(_weights(tuple(ratios), h), slopes, strict=True):
        moved = moved + gain * weight * slope
    return moved


def _weights(ratios: tuple[float, ...], h: float) -> list[float]:
    """The combination of slopes: rows r^(k-1) against k! phi_{k+1}(-h) (-h) / B(h); one slope alone gets 1/2."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    hh, factorial = -h, 1.0
    b_h = math.expm1(hh)
    phi = b_h / hh - 1
    right = []
    for k in range(1, len(ratios) + 1):
        right.append(phi * factorial / b_h)
        factorial *= k + 1
        phi = phi / hh - 1 / factorial
    rows = np.array([[ratio**k for ratio in ratios] for k in range(len(ratios))])
    return [float(w) for w in np.linalg.solve(rows, np.array(right))]
