"""What the samplers share: coefficients of a step as Python floats, finite at alpha = 0 and at sigma = 0."""

from __future__ import annotations

import math

from ..protocols import Path


def at(path: Path, t: float) -> tuple[float, float]:
    """(alpha, sigma) at t."""
    return path.alpha(t), path.sigma(t)


def lam(path: Path, t: float) -> float:
    """Half-log-SNR log(alpha / sigma), infinite at either end."""
    a, s = at(path, t)
    if s == 0:
        return math.inf
    return -math.inf if a == 0 else math.log(a) - math.log(s)


def decay(path: Path, t: float, u: float) -> float:
    """exp(-h) for the step t to u, h = lam(u) - lam(t): 0 where the step starts at alpha = 0 or ends at sigma = 0."""
    (a, s), (b, r) = at(path, t), at(path, u)
    return a * r / (s * b)


def secant(path: Path, t: float, u: float, old: float) -> float:
    """h / (2 h_old), the weight of the last difference in a second-order multistep; 0 where a step is infinite."""
    h, h_old = lam(path, u) - lam(path, t), lam(path, t) - lam(path, old)
    return 0.0 if math.isinf(h) or math.isinf(h_old) else h / (2 * h_old)
