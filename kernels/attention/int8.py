"""Attention whose two products are in 8 bits, on processors with AVX-512 VNNI.

After SageAttention (arXiv:2410.02367), where keys lose their mean over the tokens: here each 256 lose their own, whose
product with a query is added in float, and have a scale of their own, or each key for itself where there are no more
than 256: the first token of a text has a key far from the others'. Queries have a scale per row, values per channel.
The weights of each 256 keys are rounded to 0..255 of the greatest among them; what is less than 1 and at least `LEAST`
becomes 1, so that many small weights add up to what they should. For no mask, in float32; a batch is its singles, bit
for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .native import available, called

__all__ = ["available"]

KEYS = 256
"""Keys whose weights share a scale."""
DOUBLING = 26
"""Steps in which a weight doubles."""
LEAST = 0.35
"""Weights from here to 1 become 1: of weights spread evenly over their powers as much is added as is lost below."""
MOST_FEATURES = 256


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """q [B,H,L,D], k and v [B,H,S,D] float32 on a processor -> [B,H,L,D], whose memory is that of [B,L,H,D]."""
    return called("sfumato_attention_int8", MOST_FEATURES, (q, k, v), scale)


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """The same roundings in plain torch, in float64."""
    q, k, v = (t.double() for t in (q, k, v))
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    q_step = _step(q.abs().amax(3, keepdim=True))
    v_step = _step(v.abs().amax(2, keepdim=True))
    scores = torch.cat([_scores(q, q_step, part, k.shape[2] <= KEYS) for part in k.split(KEYS, 2)], 3) * scale
    top = scores.amax(3, keepdim=True)
    out, total = torch.zeros_like(q), torch.zeros_like(top)
    for s, u in zip(scores.split(KEYS, 3), (v / v_step).round().split(KEYS, 2), strict=True):
        own = s.amax(3, keepdim=True)
        steps = ((own - s) * (DOUBLING / math.log(2))).round()
        real = 255 * 2 ** (-steps / DOUBLING)
        weights = torch.where(real < 1.5, (real >= LEAST).double(), real.round())
        now = (own - top).exp()
        out, total = out + weights @ u * now, total + weights.sum(3, keepdim=True) * now
    return (out / total * v_step).float()


def _scores(q: Tensor, q_step: Tensor, k: Tensor, each_its_own: bool) -> Tensor:
    """Of the keys around their mean in 8 bits, and of the mean as it is."""
    mean = k.mean(2, keepdim=True)
    k_step = _step((k - mean).abs().amax(3 if each_its_own else (2, 3), keepdim=True))
    return (q / q_step).round() @ (((k - mean) / k_step).round() * k_step).mT * q_step + q @ mean.mT


def _step(most: Tensor) -> Tensor:
    """The size of one of 127 steps; 1 where all is zero."""
    return torch.where(most > 0, most / 127, torch.ones_like(most))
