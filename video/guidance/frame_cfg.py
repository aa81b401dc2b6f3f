"""frame-cfg: classifier-free guidance whose scale changes along the frames of a clip.

Paper: arXiv:2311.15127, appendix D (Stable Video Diffusion: linear from the first frame to the last)
Shapes: x [B,C,F,H,W], F latent frames
Units and ranges: first and last 0..100, the scales of the first and the last frame; 1 = off
Cost: 1 extra condition per call (the negative); none if both scales are 1
Neutral: first = 1 with last = 1
Errors: ValueError for a scale outside 0..100, x without a frame axis, or scales other than 1 without a negative
    condition
Differs: acts on x0 and eps alike, which is the same on every path
Tasks: video
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...pipelines.protocols import Conds, Denoiser, Pred, Predict


@dataclass(frozen=True)
class FrameCfg:
    """neg + scale (pos - neg), the scale linear in the frame's number."""

    first: float = 1.0
    """Guidance scale of the first frame, 0..100; 1 is off."""
    last: float = 3.0
    """Guidance scale of the last frame, 0..100; 1 is off."""

    def __post_init__(self) -> None:
        for name, value in (("first", self.first), ("last", self.last)):
            if not 0 <= value <= 100:
                raise ValueError(f"{name} must be in 0..100, got {value}")

    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict:
        if self.first == self.last == 1:
            return lambda x, t: denoise(x, t, conds.pos)[0]
        neg = conds.neg
        if neg is None:
            raise ValueError("frame-cfg needs a negative condition; or use scales of 1")

        def predict(x: Tensor, t: float) -> Pred:
            if x.ndim != 5:
                raise ValueError(f"frame-cfg needs x [B,C,F,H,W], got {tuple(x.shape)}")
            scale = torch.linspace(self.first, self.last, x.shape[2], device=x.device, dtype=x.dtype)
            scale = scale[:, None, None]
            strong, weak = denoise(x, t, conds.pos, neg)
            return Pred(*(w + scale * (s - w) for s, w in zip(strong, weak, strict=True)))

        return predict
