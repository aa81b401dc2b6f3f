"""The three probability paths x_t = alpha(t) x0 + sigma(t) eps: VP (Stable Diffusion), flow matching, and VE.

All functions of a path take and return Python floats. Half-log-SNR lam = log(alpha / sigma) is what they share.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .protocols import Path


def vp(alphas_cumprod: Sequence[float] | Tensor, *, end: float = 0.0) -> Path:
    """The variance-preserving path of a discrete table a_bar [N] (alpha^2), made continuous.

    t = (k + 1) / N is training step k. Between steps lam is linear in t; below the first step sigma / alpha
    falls linearly to 0, and with zero terminal SNR alpha / sigma falls linearly to 0 over the last step, so that
    every value is finite on the whole of [0, 1].
    """
    table = [float(a) for a in alphas_cumprod]
    n = len(table)
    if n < 2 or any(not 0 <= a <= 1 for a in table) or any(b >= a for a, b in pairwise(table)):
        raise ValueError(f"alphas_cumprod must be at least 2 falling values in 0..1, got {n} values")
    lams = [_lam_of(a) for a in table]
    rising = [-value for value in lams]

    def lam(t: float) -> float:
        if t <= 0:
            return math.inf
        k = t * n - 1
        if k < 0:
            return lams[0] - math.log(t * n)
        i = min(int(k), n - 2)
        f = min(k - i, 1.0)
        if math.isinf(lams[i + 1]):
            return lams[i] + math.log1p(-f) if f < 1 else -math.inf
        return lams[i] + f * (lams[i + 1] - lams[i])

    def time_of(value: float) -> float:
        if value >= lams[0]:
            return math.exp(lams[0] - value) / n
        if value <= lams[-1]:
            return 1.0
        i = bisect_left(rising, -value) - 1
        gap = lams[i + 1] - lams[i]
        f = -math.expm1(value - lams[i]) if math.isinf(gap) else (value - lams[i]) / gap
        return (i + f + 1) / n

    return Path(
        name="vp",
        alpha=lambda t: _alpha_of(lam(t)),
        sigma=lambda t: _alpha_of(-lam(t)),
        time_of=time_of,
        end=end,
        last=1 / n,
        grid=n,
    )


def vp_from_config(config: Mapping[str, Any]) -> Path:
    """The VP path that a diffusers scheduler config describes, with the rounding of its float32 table.

    Sampling ends at the first training step instead of sigma = 0 when `set_alpha_to_one` is false or
    `final_sigmas_type` is "sigma_min".
    """
    n = int(config.get("num_train_timesteps", 1000))
    betas = _betas(config, n)
    odds, to_zero = (
        float(config.get("snr_shift_scale", 1.0)),
        bool(config.get("rescale_betas_zero_snr", False)),
    )
    if to_zero and odds == 1:
        betas = _zero_terminal_snr(betas)
    a_bar = torch.cumprod(1.0 - betas, dim=0)
    if odds != 1:  # CogVideoX and CogView3: signal to noise divided by a factor
        a_bar = a_bar / (odds + (1 - odds) * a_bar)
        a_bar = _to_zero(a_bar) if to_zero else a_bar
    ends_clean = config.get("set_alpha_to_one", True) and config.get("final_sigmas_type") != "sigma_min"
    return vp(a_bar, end=0.0 if ends_clean else 1 / len(a_bar))


def flow(shift: float = 1.0) -> Path:
    """Rectified flow: sigma(t) = shift t / (1 + (shift - 1) t), alpha = 1 - sigma."""
    if not shift > 0:
        raise ValueError(f"shift must be above 0, got {shift}")

    def sigma(t: float) -> float:
        return shift * t / (1 + (shift - 1) * t)

    def alpha(t: float) -> float:
        return (1 - t) / (1 + (shift - 1) * t)  # 1 - sigma, without cancellation near t = 1

    def time_of(lam: float) -> float:
        s = 1 / (1 + math.exp(lam)) if lam < 700 else 0.0
        return s / (shift - (shift - 1) * s)

    return Path(name="flow", alpha=alpha, sigma=sigma, time_of=time_of)


def ve(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Path:
    """The variance-exploding path: t is sigma itself and alpha = 1."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    return Path(
        name="ve",
        alpha=lambda t: 1.0,
        sigma=lambda t: t,
        time_of=lambda lam: math.exp(-lam) if lam > -700 else math.inf,
        start=sigma_max,
        end=0.0,
        last=sigma_min,
    )


def begin(path: Path, noise: Tensor, t: float | None = None) -> Tensor:
    """x at time t (path.start) from pure noise, with the spread that data of unit variance has there."""
    t = path.start if t is None else t
    return math.hypot(path.alpha(t), path.sigma(t)) * noise


def diffuse(path: Path, z: Tensor, noise: Tensor, t: float) -> Tensor:
    """x_t = alpha(t) z + sigma(t) noise: where image-to-image and editing start."""
    return path.alpha(t) * z + path.sigma(t) * noise


def step_of(path: Path, t: float) -> float:
    """The training step of time t on a path with discrete steps, as a float: t N - 1, at least 0."""
    if path.grid is None:
        raise ValueError(f"the {path.name} path has no discrete training steps")
    return max(t * path.grid - 1, 0.0)


def time_at(path: Path, step: float) -> float:
    """The time of a training step on a path with discrete steps: (k + 1) / N."""
    if path.grid is None:
        raise ValueError(f"the {path.name} path has no discrete training steps")
    return (step + 1) / path.grid


def _lam_of(a_bar: float) -> float:
    if a_bar == 0:
        return -math.inf
    return math.inf if a_bar == 1 else 0.5 * math.log(a_bar / (1 - a_bar))


def _alpha_of(lam: float) -> float:
    return 1 / math.sqrt(1 + math.exp(-2 * lam)) if lam > -300 else 0.0


def _betas(config: Mapping[str, Any], n: int) -> Tensor:
    """Betas [N] in float32, rounded as diffusers rounds them."""
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.tensor(trained, dtype=torch.float32)
    low, high = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return torch.linspace(low, high, n, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(low**0.5, high**0.5, n, dtype=torch.float32) ** 2
    if kind == "squaredcos_cap_v2":

        def bar(s: float) -> float:
            return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

        return torch.tensor(
            [min(1 - bar((i + 1) / n) / bar(i / n), 0.999) for i in range(n)], dtype=torch.float32
        )
    if kind == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, n)) * (high - low) + low
    raise ValueError(
        f"beta_schedule {kind!r} is unknown; known: linear, scaled_linear, squaredcos_cap_v2, sigmoid"
    )


def _to_zero(a_bar: Tensor) -> Tensor:
    """arXiv:2305.08891, algorithm 1: shift and scale sqrt(a_bar) so that the last one is exactly 0."""
    root = a_bar.sqrt()
    first, final = root[0].clone(), root[-1].clone()
    scaled: Tensor = ((root - final) * (first / (first - final))) ** 2
    return scaled


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """The same for betas, with the rounding of the way there and back."""
    a_bar = _to_zero(torch.cumprod(1.0 - betas, dim=0))
    alphas = torch.cat([a_bar[:1], a_bar[1:] / a_bar[:-1]])
    return 1 - alphas
