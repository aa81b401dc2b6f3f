"""cfg-rescale: classifier-free guidance whose contrast is brought back to that of the conditional prediction.

Paper: arXiv:2305.08891, eq. 14 to 16
Shapes: x [B, ...]; the spread is taken over all axes but the first
Units and ranges: scale 0..100, 1 = off; phi 0..1, share of the rescaled prediction
Cost: 1 extra condition per call (the negative); none at scale 1
Neutral: scale = 1 (phi = 0 is plain cfg)
Errors: ValueError for a setting outside its range, or scale other than 1 without a negative condition
Differs: always acts on the velocity, the paper's network output, whatever the network predicts: alpha eps - sigma x0
    on VP and, after normalising, on VE; eps - x0 on flow
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..protocols import Conds, Denoiser, Path, Pred, Predict
from ._common import extrapolate, negative


@dataclass(frozen=True)
class CfgRescale:
    """CFG, then the velocity scaled to the spread of the positive one, mixed by phi."""

    scale: float = 7.5
    """Guidance scale, 0..100; 1 is off."""
    phi: float = 0.7
    """Share of the rescaled prediction, 0..1."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"scale must be in 0..100, got {self.scale}")
        if not 0 <= self.phi <= 1:
            raise ValueError(f"phi must be in 0..1, got {self.phi}")

    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict:
        if self.scale == 1:
            return lambda x, t: denoise(x, t, conds.pos)[0]
        neg = negative(conds, "cfg-rescale")

        def predict(x: Tensor, t: float) -> Pred:
            strong, weak = denoise(x, t, conds.pos, neg)
            guided = extrapolate(weak, strong, self.scale)
            return guided if self.phi == 0 else _rescaled(guided, strong, self.phi, denoise.path, t)

        return predict


def _rescaled(guided: Pred, strong: Pred, phi: float, path: Path, t: float) -> Pred:
    a, s = path.alpha(t), path.sigma(t)
    c = math.hypot(a, s)
    p, q = (1.0, 1.0) if path.name == "flow" else (a / c, s / c)  # v = p eps - q x0
    v = p * guided.eps - q * guided.x0
    axes = tuple(range(1, v.ndim)) or (0,)
    gain = (p * strong.eps - q * strong.x0).std(axes, keepdim=True) / v.std(axes, keepdim=True).clamp_min(
        1e-8
    )
    change = phi * (gain - 1) * v / (a * p + s * q)
    return Pred(guided.x0 - s * change, guided.eps + a * change)  # x = alpha x0 + sigma eps stays as it was
