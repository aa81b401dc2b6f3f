"""Attention whose two products are in 8 bits, on processors with AVX-512 VNNI.

After SageAttention (arXiv:2410.02367): keys lose their mean over the tokens, which softmax does not see; queries have a
scale per row, values per channel, keys per head, or each for itself where there are no more than 256: the first token
of a text has a key far from the others'. The weights of each 256 keys are rounded to 0..255 of the greatest among them.
For no mask, in float32; a batch is its singles, bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .native import available, called

__all__ = ["available"]

KEYS = 256
"""Keys whose weights share a scale."""
DOUBLING = 32
"""Steps in which a weight doubles."""
MOST_FEATURES = 256


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """q [B,H,L,D], k and v [B,H,S,D] float32 on a processor -> [B,H,L,D], whose memory is that of [B,L,H,D]."""
    return called("sfumato_attention_int8", MOST_FEATURES, (q, k, v), scale)


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """The same roundings in plain torch, in float64."""
    q, k, v = (t.double() for t in (q, k, v))
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    k = k - k.mean(2, keepdim=True)
    q_step = _step(q.abs().amax(3, keepdim=True))
    k_step = _step(k.abs().amax(3 if k.shape[2] <= KEYS else (2, 3), keepdim=True))
    v_step = _step(v.abs().amax(2, keepdim=True))
    scores = (q / q_step).round() @ ((k / k_step).round() * k_step).mT * (q_step * scale)
    top = scores.amax(3, keepdim=True)
    out, total = torch.zeros_like(q), torch.zeros_like(top)
    for s, u in zip(scores.split(KEYS, 3), (v / v_step).round().split(KEYS, 2), strict=True):
        own = s.amax(3, keepdim=True)
        steps = ((own - s) * (DOUBLING / math.log(2))).round()
        weights = torch.where(steps < 255, (255 * 2 ** (-steps / DOUBLING)).round(), 0)
        now = (own - top).exp()
        out, total = out + weights @ u * now, total + weights.sum(3, keepdim=True) * now
    return (out / total * v_step).float()


def _step(most: Tensor) -> Tensor:
    """The size of one of 127 steps; 1 where all is zero."""
    return torch.where(most > 0, most / 127, torch.ones_like(most))
