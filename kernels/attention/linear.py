"""Linear attention: phi(q) (phi(k)^T v) over phi(q) mean(phi(k)), with phi(x) = elu(x) + 1. Cost grows with L, not L^2.

After LinFusion (arXiv:2409.02097), eq. 9: normalised, and not causal. Of a network that was trained with softmax it
makes noise until its queries and keys have learned it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL = 1e-4
"""Added to the divisor, which is positive anyway."""


def features(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B,H,L,D], k [B,H,S,D], v [B,H,S,E] -> [B,H,L,E]."""
    a, b = features(q), features(k)
    # as many tokens sum to more than float16 holds: each side takes its half of the mean
    half = k.shape[2] ** -0.5
    summed = (b * half).mT @ (v * half)
    return (a @ summed) / (a @ b.mean(2, keepdim=True).mT + SMALL)


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with all L x S weights at once, in float64."""
    a, b = features(q.double()), features(k.double())
    weights = a @ b.mT / k.shape[2]
    out: Tensor = (weights @ v.double() / (weights.sum(3, keepdim=True) + SMALL)).to(torch.float64)
    return out
