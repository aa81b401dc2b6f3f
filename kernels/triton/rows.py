"""Rows made ready for products in 8 bits, in one pass: RMSNorm, rotary positions, a shift, a scale of their own."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROPES = ("none", "pairs", "halves")
"""Which features turn together: 2i with 2i + 1, or i with i + D/2."""


@triton.jit
def rows_kernel(X, beside, OUT, SCALE, sizes, strides, eps, META: tl.constexpr):
    """META: rows, features to a power of two, has weight, rope, has shift, has divisor, 127 or 448 as the most."""
    BL: tl.constexpr = META[0]
    BD: tl.constexpr = META[1]
    NORM: tl.constexpr = META[2]
    ROPE: tl.constexpr = META[3]
    SHIFTED: tl.constexpr = META[4]
    DIVIDED: tl.constexpr = META[5]
    MOST: tl.constexpr = META[6]
    WEIGHT, COS, SIN, SHIFT, DIVISOR = beside
    heads, tokens, features = sizes
    at = tl.program_id(0) * BL + tl.arange(0, BL)
    d = tl.arange(0, BD)
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    X += image.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    inside = (at[:, None] < tokens) & (d[None, :] < features)
    row = at[:, None].to(tl.int64) * strides[2]
    x = tl.load(X + row + d[None, :], mask=inside, other=0).to(tl.float32)
    inverse = tl.full((BL,), 1.0, tl.float32)
    if NORM:
        inverse = tl.rsqrt(tl.sum(x * x, 1) / features + eps)
        x = x * inverse[:, None] * tl.load(WEIGHT + d, mask=d < features, other=0).to(tl.float32)[None, :]
    if ROPE:
        if ROPE == 1:
            partner, sign = d ^ 1, (d % 2 * 2 - 1).to(tl.float32)
        else:
            half = features // 2
            partner, sign = tl.where(d < half, d + half, d - half), tl.where(d < half, -1.0, 1.0)
        y = tl.load(X + row + partner[None, :], mask=inside, other=0).to(tl.float32) * inverse[:, None]
        if NORM:
            y = y * tl.load(WEIGHT + partner, mask=d < features, other=0).to(tl.float32)[None, :]
        turn = at[:, None] * features + d[None, :]
        cos = tl.load(COS + turn, mask=inside, other=0).to(tl.float32)
        x = x * cos + y * sign[None, :] * tl.load(SIN + turn, mask=inside, other=0).to(tl.float32)
    if SHIFTED:
        x -= tl.load(SHIFT + tl.program_id(1) * features + d, mask=d < features, other=0).to(tl.float32)[
            None, :
        ]
    if DIVIDED:
        x = x / tl.load(DIVISOR + d, mask=d < features, other=1).to(tl.float32)[None, :]
    x = tl.where(inside, x, 0)
    most = tl.max(tl.abs(x), 1)
    scale = tl.where(most > 0, most / MOST, 1.0)
    x = x / scale[:, None]
    if MOST == 127:  # to the nearest, ties away from zero
        x = tl.where(x < 0, tl.ceil(x - 0.5), tl.floor(x + 0.5))
    to = (tl.program_id(1).to(tl.int64) * tokens + at[:, None]) * features + d[None, :]
    tl.store(OUT + to, x.to(OUT.dtype.element_ty), mask=inside)
    tl.store(SCALE + tl.program_id(1) * tokens + at, scale, mask=at < tokens)


class Rows(NamedTuple):
    """real = scale [...] * stored [...,D]."""

    stored: Tensor
    scale: Tensor


class Turn(NamedTuple):
    """Rotary positions: x cos + x' sin, where x' is the partner of x in a pair, its sign turned in the first."""

    cos: Tensor
    """[L,D]."""
    sin: Tensor
    kind: str = "pairs"


def prepared(
    x: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    turn: Turn | None = None,
    shift: Tensor | None = None,
    divisor: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
) -> Rows:
    """x [B,H,L,D] -> rows of `dtype`: int8, or fp8 (e4m3). norm [D] is RMSNorm's weight, shift [B,H,D], divisor [D]."""
    batch, heads, tokens, features = x.shape
    if turn is not None and (turn.kind not in ROPES[1:] or features % 2 or turn.cos.shape != x.shape[2:]):
        raise ValueError(f"rotary positions must be {ROPES[1:]} of [{tokens},{features}], got {turn.kind}")
    x = x if x.stride(3) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(x.shape[:3], dtype=torch.float32, device=x.device)
    rope = 0 if turn is None else ROPES.index(turn.kind)
    wide = max(16, triton.next_power_of_2(features))
    high = max(1, min(64, 4096 // wide))
    most = 127 if dtype == torch.int8 else 448
    meta = (high, wide, norm is not None, rope, shift is not None, divisor is not None, most)
    cos, sin = (scale, scale) if turn is None else (turn.cos.contiguous(), turn.sin.contiguous())
    weight, moved, divided = (scale if part is None else part.contiguous() for part in (norm, shift, divisor))
    rows_kernel[(triton.cdiv(tokens, high), batch * heads)](
        x,
        (weight, cos, sin, moved, divided),
        out,
        scale,
        (heads, tokens, features),
        x.stride()[:3],
        eps,
        meta,
        num_warps=warps(high, wide),
    )
    return Rows(out, scale)


def warps(high: int, wide: int) -> int:
    """For a block of so many rows and features: a thread holds about 32 numbers."""
    return max(4, min(16, high * wide // 1024))


def quantised(x: Tensor, divisor: Tensor | None = None, dtype: torch.dtype = torch.int8) -> Rows:
    """x [...,K] by token, divided by [K] before if that is given."""
    found = prepared(x.reshape(1, 1, -1, x.shape[-1]), divisor=divisor, dtype=dtype)
    return Rows(found.stored.view(x.shape), found.scale.view(x.shape[:-1]))
