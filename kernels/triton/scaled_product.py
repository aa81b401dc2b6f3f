"""Products of rows in 8 bits: int8 by int8 into int32, or fp8 by fp8 into float32, with scales, bias and activation.

The scale of a token and of an output channel are applied once to the finished sum, so nothing is lost to them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts import blocks, finish, height, kind_of, place, rows_of, widened


@triton.jit
def product_kernel(X, W, scales, BIAS, OUT, sizes, strides, META: tl.constexpr):
    """META: rows, columns, depth, has bias, activation, whether whole numbers, whether widened."""
    BM: tl.constexpr = META[0]
    BN: tl.constexpr = META[1]
    BK: tl.constexpr = META[2]
    WHOLE: tl.constexpr = META[5]
    WIDE: tl.constexpr = META[6]
    m, n = place(sizes[0], sizes[1], META)
    acc = tl.zeros((BM, BN), tl.int32 if WHOLE else tl.float32)
    for k0 in range(0, sizes[2], BK):
        k = k0 + tl.arange(0, BK)
        x = tl.load(
            X + m[:, None].to(tl.int64) * strides[0] + k[None, :],
            mask=(m[:, None] < sizes[0]) & (k[None, :] < sizes[2]),
            other=0.0,
        )
        w = tl.load(
            W + n[None, :].to(tl.int64) * strides[1] + k[:, None],
            mask=(n[None, :] < sizes[1]) & (k[:, None] < sizes[2]),
            other=0.0,
        )
        if WHOLE:
            acc = tl.dot(x, w, acc, out_dtype=tl.int32)
        elif WIDE:
            acc = tl.dot(x.to(tl.float32), w.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(x, w, acc)
    xs = tl.load(scales[0] + m, mask=m < sizes[0], other=0)
    ws = tl.load(scales[1] + n, mask=n < sizes[1], other=0)
    finish(acc.to(tl.float32) * xs[:, None] * ws[None, :], BIAS, OUT, (m, n, strides[2]), sizes, META)


def product(
    x: Tensor,
    weight: Tensor,
    scales: tuple[Tensor, Tensor],
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """x [...,K] and weight [N,K], both int8 or both fp8; scales [...] and [N] -> [...,N] of `dtype`."""
    rows, w = rows_of(x), rows_of(weight)
    if rows.dtype != w.dtype or rows.shape[1] != w.shape[1]:
        raise ValueError(
            f"x and weight must share type and K, got {x.dtype} {list(x.shape)}, {weight.dtype} {list(weight.shape)}"
        )
    (count, depth), wide = rows.shape, len(w)
    out = torch.empty(count, wide, dtype=dtype, device=x.device)
    kind = kind_of(activation)
    meta = (height(count), 128, 64, bias is not None, kind, x.dtype == torch.int8, widened(rows))
    per_row, per_column = (s.reshape(-1).float().contiguous() for s in scales)
    product_kernel[blocks(count, wide, meta)](
        rows,
        w,
        (per_row, per_column),
        per_column if bias is None else bias.contiguous(),
        out,
        (count, wide, depth),
        (rows.stride(0), w.stride(0), out.stride(0)),
        meta,
        num_warps=4 if meta[0] < 128 else 8,
        num_stages=4,
    )
    return out.view(*x.shape[:-1], wide)
