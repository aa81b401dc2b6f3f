"""cfg++: guidance of the clean estimate only, re-noised with the unconditional eps.

Paper: arXiv:2406.08070, algorithm 2
Shapes: x any shape
Units and ranges: scale 0..2 (the paper's lambda; 0.2 to 0.8 replace CFG scales of 2 to 12)
Cost: 1 extra condition per call (the negative)
Neutral: none: scale 1 takes x0 from the positive but eps from the negative; scale 0 is the negative alone
Errors: ValueError for scale outside 0..2, or no negative condition
Differs: the paper changes DDIM; here every sampler that uses Pred.eps follows it
Tasks: image, video, 3d
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..protocols import Conds, Denoiser, Pred, Predict
from ._common import extrapolate, negative


@dataclass(frozen=True)
class Cfgpp:
    """Guided x0 with unguided eps."""

    scale: float = 0.6
    """The paper's lambda, 0..2."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 2:
            raise ValueError(f"scale must be in 0..2, got {self.scale}")

    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict:
        neg = negative(conds, "cfg++")

        def predict(x: Tensor, t: float) -> Pred:
            strong, weak = denoise(x, t, conds.pos, neg)
            return Pred(extrapolate(weak, strong, self.scale).x0, weak.eps)

        return predict
