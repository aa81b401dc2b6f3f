"""windows: a clip longer than the network's, in overlapping windows along time with cross-fades.

Paper: arXiv:2302.08113 (MultiDiffusion), eq. 5, along the frame axis
Shapes: x [B,C,F,H,W], F latent frames
Units and ranges: size 1 and up, frames of a window; overlap 0..size-1, frames shared by neighbours
Cost: ceil((F - overlap) / (size - overlap)) network calls per evaluation, each on a window
Neutral: size >= F (one call on the whole clip)
Errors: ValueError for a setting outside its range, or x without a frame axis
Differs: windows are blended by linear cross-fades instead of a flat mean, so no seam shows at a window's edge
Tasks: video
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...pipelines.protocols import Path, Pred, Predict


@dataclass(frozen=True)
class Windows:
    """Predicts each window by itself; where two meet, the new one fades in over the old."""

    size: int = 16
    """Latent frames of a window, 1 and up."""
    overlap: int = 4
    """Latent frames shared by neighbours, 0..size-1."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be 1 or more, got {self.size}")
        if not 0 <= self.overlap < self.size:
            raise ValueError(f"overlap must be in 0..{self.size - 1} (size - 1), got {self.overlap}")

    def __call__(self, predict: Predict, path: Path) -> Predict:
        def windowed(x: Tensor, t: float) -> Pred:
            if x.ndim != 5:
                raise ValueError(f"windows needs x [B,C,F,H,W], got {tuple(x.shape)}")
            frames = x.shape[2]
            if frames <= self.size:
                return predict(x, t)
            x0, eps, done = torch.empty_like(x), torch.empty_like(x), 0
            for first in self._starts(frames):
                p = predict(x[:, :, first : first + self.size], t)
                for whole, part in ((x0, p.x0), (eps, p.eps)):
                    _fade_in(whole, part, first, done)
                done = first + self.size
            return Pred(x0, eps)

        return windowed

    def _starts(self, frames: int) -> list[int]:
        """First frames of the windows; the last window ends with the clip."""
        stride = self.size - self.overlap
        return [*range(0, frames - self.size, stride), frames - self.size]


def _fade_in(whole: Tensor, part: Tensor, first: int, done: int) -> None:
    """Write `part` at `first`; the frames before `done` hold earlier windows and are blended."""
    shared = max(done - first, 0)
    if shared:
        weights = torch.arange(1, shared + 1, device=part.device, dtype=part.dtype) / (shared + 1)
        old = whole[:, :, first:done]
        whole[:, :, first:done] = old + weights.view(1, 1, -1, 1, 1) * (part[:, :, :shared] - old)
    whole[:, :, first + shared : first + part.shape[2]] = part[:, :, shared:]
