"""microdit: most blocks of a network in training see a part of the tokens, after a patch mixer saw all of them.

Paper: arXiv:2407.15811, section 2.2
Shapes: indices [K] of the tokens that stay, K = L (1 - share) rounded, at least 1
Units and ranges: share 0..0.9 of the tokens left out
Cost: less: a share s saves about s of the later blocks' work on picture tokens
Neutral: share = 0
Errors: ValueError for a share outside its range
Differs: the joint blocks are the patch mixer, one draw of tokens serves a whole batch, and the loss is taken on the
    tokens that stay
Tasks: image
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroDit:
    """Deferred masking: which tokens stay in a step."""

    share: float = 0.5
    """Share of the tokens left out, 0..0.9; 0 is off."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 0.9:
            raise ValueError(f"share must be in 0..0.9, got {self.share}")

    def __call__(self, tokens: int, rng: torch.Generator) -> Tensor | None:
        """Sorted indices of the tokens that stay, or None for all."""
        if self.share == 0:
            return None
        stay = max(1, round(tokens * (1 - self.share)))
        return torch.randperm(tokens, generator=rng, device=rng.device)[:stay].sort().values
