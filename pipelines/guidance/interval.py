"""interval: classifier-free guidance in a limited range of noise; outside it the positive condition alone.

Paper: arXiv:2404.07724, eq. 5
Shapes: x any shape
Units and ranges: scale 0..100, 1 = off; low and high in sigma / alpha, 0 <= low < high; on flow paths this is
    sigma / (1 - sigma)
Cost: 1 extra condition per call (the negative) inside the interval; none outside or at scale 1
Neutral: scale = 1 (low = 0 with high = inf is plain cfg)
Errors: ValueError for a setting outside its range, or scale other than 1 without a negative condition
Differs: nothing
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..protocols import Conds, Denoiser, Pred, Predict
from ._common import extrapolate, negative


@dataclass(frozen=True)
class Interval:
    """CFG for low < sigma / alpha <= high."""

    scale: float = 5.0
    """Guidance scale inside the interval, 0..100; 1 is off."""
    low: float = 0.28
    """Lower end, sigma / alpha, 0 and up; the paper's value for SDXL."""
    high: float = 5.42
    """Upper end, sigma / alpha, above low; the paper's value for SDXL."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"scale must be in 0..100, got {self.scale}")
        if not 0 <= self.low < self.high:
            raise ValueError(f"low and high must satisfy 0 <= low < high, got {self.low} and {self.high}")

    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict:
        if self.scale == 1:
            return lambda x, t: denoise(x, t, conds.pos)[0]
        neg = negative(conds, "interval")

        def predict(x: Tensor, t: float) -> Pred:
            a, s = denoise.path.alpha(t), denoise.path.sigma(t)
            if not self.low < (s / a if a > 0 else math.inf) <= self.high:
                return denoise(x, t, conds.pos)[0]
            strong, weak = denoise(x, t, conds.pos, neg)
            return extrapolate(weak, strong, self.scale)

        return predict
