"""cfg: classifier-free guidance.

Paper: arXiv:2207.12598, eq. 6 with scale = 1 + w
Shapes: x any shape
Units and ranges: scale 0..100, 1 = off
Cost: 1 extra condition per call (the negative); none at scale 1
Neutral: scale = 1
Errors: ValueError for scale outside 0..100, or scale other than 1 without a negative condition
Differs: acts on x0 and eps alike, which is the same on every path
Tasks: image, video, 3d
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..protocols import Conds, Denoiser, Pred, Predict
from ._common import extrapolate, negative


@dataclass(frozen=True)
class Cfg:
    """neg + scale (pos - neg)."""

    scale: float = 5.0
    """Guidance scale, 0..100; 1 is off."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"scale must be in 0..100, got {self.scale}")

    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict:
        if self.scale == 1:
            return lambda x, t: denoise(x, t, conds.pos)[0]
        neg = negative(conds, "cfg")

        def predict(x: Tensor, t: float) -> Pred:
            strong, weak = denoise(x, t, conds.pos, neg)
            return extrapolate(weak, strong, self.scale)

        return predict
