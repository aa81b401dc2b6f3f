"""repa: hidden states of a network in training are drawn towards a representation of the clean picture.

Paper: arXiv:2410.06940, eq. 4
Shapes: projected and truth [B,K,D], K tokens; the term is a scalar
Units and ranges: weight 0 and up, against a velocity error of about 0.3
Cost: a projector of two layers during training, nothing afterwards
Neutral: weight = 0
Errors: ValueError for a negative or infinite weight
Differs: the representation is not a pretrained encoder's but the world's own truth (normals, depth and the shares of
    each shape and colour, token by token, each with deviation 1), and the measure is the squared error instead of the
    cosine, so that tokens of which little is to be known weigh little; the state is that after the second single block
Tasks: image
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Repa:
    """Representation alignment as a further term of the loss."""

    weight: float = 0.5
    """Weight of the term, 0 and up; 0 is off."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")

    def __call__(self, projected: Tensor, truth: Tensor) -> Tensor:
        """The term; 1 before weighting for a projector that knows nothing."""
        return self.weight * F.mse_loss(projected.float(), truth)
