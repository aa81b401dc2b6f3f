"""keep-known: inpainting in latents; what the mask leaves out stays as it is known.

Paper: arXiv:2201.09865 (RePaint), eq. 8, without resampling; with the run's own noise for the known part
Shapes: known and noise like x; mask broadcastable to x, as [B,1,H,W] or [B,1,1,H,W]
Units and ranges: mask 0..1, 1 = repaint; values between blend
Cost: no extra network evaluations; 3 tensors like x
Neutral: mask = 1 everywhere
Errors: ValueError for a mask outside 0..1 or shapes that do not fit
Differs: the known part enters each evaluation at its own noise and leaves it exactly, for every sampler
Tasks: image, video, 3d
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..protocols import Path, Pred, Predict


@dataclass(frozen=True, eq=False)
class KeepKnown:
    """Replaces x, x0 and eps outside the mask by what is known there."""

    known: Tensor
    """Clean latents, like x."""
    mask: Tensor
    """1 = repaint, 0 = keep; broadcastable to x."""
    noise: Tensor
    """The noise the run starts from, like x."""

    def __post_init__(self) -> None:
        if self.noise.shape != self.known.shape:
            raise ValueError(
                f"noise {tuple(self.noise.shape)} must be shaped like known {tuple(self.known.shape)}"
            )
        if torch.broadcast_shapes(self.mask.shape, self.known.shape) != self.known.shape:
            raise ValueError(f"mask {tuple(self.mask.shape)} does not fit known {tuple(self.known.shape)}")
        if self.mask.dtype != torch.bool and not 0 <= float(self.mask.min()) <= float(self.mask.max()) <= 1:
            raise ValueError(f"mask must be in 0..1, got {float(self.mask.min())}..{float(self.mask.max())}")

    def __call__(self, predict: Predict, path: Path) -> Predict:
        def masked(x: Tensor, t: float) -> Pred:
            known, noise, mask = self.known.to(x), self.noise.to(x), self.mask.to(x)

            def mix(new: Tensor, old: Tensor) -> Tensor:
                return torch.where(mask == 1, new, torch.lerp(old, new, mask))

            p = predict(mix(x, path.alpha(t) * known + path.sigma(t) * noise), t)
            return Pred(mix(p.x0, known), mix(p.eps, noise))

        return masked
