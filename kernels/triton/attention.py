"""Attention with q k in 8 bits and the weights times v in half precision or fp8, one pass over the keys.

After SageAttention (arXiv:2410.02367, 2411.10958): keys lose their mean over the tokens, q and k have a scale per
token, v in fp8 one per feature. Scores are never written.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention.call import Preparation
from .parts import widened
from .rows import Rows, Turn, prepared

FP8 = torch.float8_e4m3fn
MOST = 448.0
"""The greatest number in e4m3."""


@triton.jit
def attention_kernel(Q, K, V, scales, OUT, sizes, strides, META: tl.constexpr):
    """META: queries, keys, features to a power of two, whether v is fp8, whether widened."""
    BL: tl.constexpr = META[0]
    BS: tl.constexpr = META[1]
    BD: tl.constexpr = META[2]
    EIGHT: tl.constexpr = META[3]
    WIDE: tl.constexpr = META[4]
    QS, KS, VS = scales
    heads, queries, keys, features = sizes
    pair = tl.program_id(1).to(tl.int64)
    image, head = pair // heads, pair % heads
    i, d = tl.program_id(0) * BL + tl.arange(0, BL), tl.arange(0, BD)
    q = tl.load(
        Q + (pair * queries + i[:, None]) * features + d[None, :],
        mask=(i[:, None] < queries) & (d[None, :] < features),
        other=0,
    )
    q_scale = tl.load(QS + pair * queries + i, mask=i < queries, other=0)
    V += image * strides[0] + head * strides[1]
    top = tl.full((BL,), -float("inf"), tl.float32)
    total = tl.zeros((BL,), tl.float32)
    acc = tl.zeros((BL, BD), tl.float32)
    for j0 in range(0, keys, BS):
        j = j0 + tl.arange(0, BS)
        k = tl.load(
            K + (pair * keys + j[None, :]) * features + d[:, None],
            mask=(j[None, :] < keys) & (d[:, None] < features),
            other=0,
        )
        k_scale = tl.load(KS + pair * keys + j, mask=j < keys, other=0)
        s = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32) * q_scale[:, None] * k_scale[None, :]
        s = tl.where(j[None, :] < keys, s, -float("inf"))
        now = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - now[:, None])
        shrink = tl.exp2(top - now)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(
            V + j[:, None].to(tl.int64) * strides[2] + d[None, :],
            mask=(j[:, None] < keys) & (d[None, :] < features),
            other=0.0,
        )
        p = (p * 448 if EIGHT else p).to(V.dtype.element_ty)
        acc = acc * shrink[:, None]
        if WIDE:
            p, v = p.to(tl.float32), v.to(tl.float32)
        acc = tl.dot(p, v, acc, input_precision="ieee")
        top = now
    acc = acc / total[:, None]
    if EIGHT:
        acc = acc / 448 * tl.load(VS + pair * features + d, mask=d < features, other=0)[None, :]
    tl.store(
        OUT + image * strides[3] + head * strides[4] + i[:, None].to(tl.int64) * strides[5] + d[None, :],
        acc.to(OUT.dtype.element_ty),
        mask=(i[:, None] < queries) & (d[None, :] < features),
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: float,
    *,
    fp8: bool = False,
    before: Preparation | None = None,
) -> Tensor:
    """q [B,H,L,D], k and v [B,H,S,D] in half precision -> [B,H,L,D], whose memory is that of [B,L,H,D].

    `before` is the norm and rotary positions of q and k, if they were not applied yet. The mean of the keys is that
    before both, so with them keys are rounded as they are.
    """
    batch, heads, queries, features = q.shape
    if before is None:
        left, right = prepared(q), prepared(k, shift=k.float().mean(2))
    else:
        left, right = (_by_streams(t, before, side) for side, t in enumerate((q, k)))
    scale = torch.ones(1, device=q.device)
    v = v if v.stride(3) == 1 else v.contiguous()
    if fp8:
        most = v.float().abs().amax(2)
        scale = torch.where(most > 0, most / MOST, torch.ones_like(most))
        v = (v.float() / scale[:, :, None]).to(FP8)
    out = torch.empty(batch, queries, heads, features, dtype=q.dtype, device=q.device).transpose(1, 2)
    meta = (64, 64, max(32, triton.next_power_of_2(features)), fp8, widened(v))
    attention_kernel[(triton.cdiv(queries, meta[0]), batch * heads)](
        left.stored,
        right.stored,
        v,
        (left.scale * (factor * math.log2(math.e)), right.scale, scale),
        out,
        (heads, queries, k.shape[2], features),
        (*v.stride()[:3], *out.stride()[:3]),
        meta,
        num_warps=4,
        num_stages=3 if meta[2] <= 128 else 2,
    )
    return out


def _by_streams(x: Tensor, before: Preparation, side: int) -> Rows:
    """Rows of q (side 0) or k, each stream with its own norm."""
    parts, first = [], 0
    for part, norms in zip(x.split(before.tokens, 2), before.norms, strict=True):
        last = first + part.shape[2]
        turn = None if before.turn is None else Turn(*(t[first:last] for t in before.turn))
        parts.append(prepared(part, norm=norms[side], eps=before.eps, turn=turn))
        first = last
    return parts[0] if len(parts) == 1 else Rows(*(torch.cat(of, 2) for of in zip(*parts, strict=True)))
