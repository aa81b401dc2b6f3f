"""ip2p: two scales for a network that edits a picture: one for the instruction, one for the picture.

Paper: arXiv:2211.09800, eq. 3
Shapes: x any shape; the conditions have `beside` [B,C,h,w], channels of the picture beside x
Units and ranges: scale 0..100, picture 0..100, 1 = off
Cost: 2 extra conditions per call (the negative, and the negative without the picture); 1 at picture = 1
Neutral: scale = 1 with picture = 1 (picture = 1 alone is cfg)
Errors: ValueError for a setting outside its range, without a negative condition, or for conditions without `beside`
Differs: acts on x0 and eps alike; no picture is `beside` of zeros, as in the reference code
Tasks: image
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..protocols import Conds, Denoiser, Pred, Predict
from ._common import extrapolate, negative


@dataclass(frozen=True)
class Ip2p:
    """blank + picture (neg - blank) + scale (pos - neg)."""

    scale: float = 7.5
    """Scale of the instruction, 0..100; 1 is off."""
    picture: float = 1.5
    """Scale of the picture, 0..100; more keeps more of it, 1 is off."""

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("picture", self.picture)):
            if not 0 <= value <= 100:
                raise ValueError(f"{name} must be in 0..100, got {value}")

    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict:
        if self.scale == self.picture == 1:
            return lambda x, t: denoise(x, t, conds.pos)[0]
        neg = negative(conds, "ip2p")
        if "beside" not in neg.embeds:
            raise ValueError("ip2p needs a model that sees a picture (`beside` in its conditions); use cfg")
        unseen = {**neg.embeds, "beside": torch.zeros_like(neg.embeds["beside"])}
        blank = replace(neg.variant("blank"), embeds=unseen)

        def predict(x: Tensor, t: float) -> Pred:
            if self.picture == 1:
                strong, weak = denoise(x, t, conds.pos, neg)
                return extrapolate(weak, strong, self.scale)
            strong, weak, none = denoise(x, t, conds.pos, neg, blank)
            seen, told = extrapolate(none, weak, self.picture), extrapolate(weak, strong, self.scale)
            return Pred(seen.x0 + told.x0 - weak.x0, seen.eps + told.eps - weak.eps)

        return predict
