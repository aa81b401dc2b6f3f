"""sds: score distillation sampling.

Paper: arXiv:2209.14988, eq. 3
Shapes: z, noise and the gradient of any one shape, as renders [V,C,H,W] or their latents
Units and ranges: weight, one of sigma2 (the paper's w(t) = sigma(t)^2) and one
Cost: 1 network evaluation per gradient; nothing is kept for autograd
Neutral: none: a distillation replaces another
Errors: ValueError for an unknown weight
Differs: on flow and VE paths the same formula with their own alpha and sigma
Tasks: 3d
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...pipelines.protocols import Path, Predict


@dataclass(frozen=True)
class Sds:
    """w(t) (eps - noise). The caller's loss is (z * gradient.detach()).sum() / B."""

    weight: Literal["sigma2", "one"] = "sigma2"
    """w(t): sigma(t)^2, or 1."""

    def __post_init__(self) -> None:
        if self.weight not in ("sigma2", "one"):
            raise ValueError(f"weight must be sigma2 or one, got {self.weight!r}")

    @torch.no_grad()
    def __call__(self, predict: Predict, path: Path, z: Tensor, t: float, noise: Tensor) -> Tensor:
        eps = predict(path.alpha(t) * z + path.sigma(t) * noise, t).eps
        w = path.sigma(t) ** 2 if self.weight == "sigma2" else 1.0
        return w * (eps - noise)
