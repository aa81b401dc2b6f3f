"""Products with weights of 4 bits, unpacked on their way into the tensor cores.

W4A16: codes in groups, a scale (and a zero point) of each; activations in half precision. W4A8: codes whose group
scales are whole numbers, so that the unpacked weight is int8 exactly and the product int8 by int8; the low-rank branch
of SVDQuant is added to the finished sum before it is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts import blocks, finish, height, kind_of, place, rows_of, widened
from .rows import Rows


@triton.jit
def codes(W, n, k0, sizes, META: tl.constexpr):
    """[columns, depth] of int8 in 0..15, two from each byte, the first from the lower half."""
    BK: tl.constexpr = META[2]
    half = k0 // 2 + tl.arange(0, BK // 2)
    width = (sizes[2] + 1) // 2
    packed = tl.load(
        W + n[:, None].to(tl.int64) * width + half[None, :],
        mask=(n[:, None] < sizes[1]) & (half[None, :] < width),
        other=0,
    )
    return tl.interleave(packed & 15, (packed >> 4) & 15)


@triton.jit
def w4a16_kernel(X, W, scales, BIAS, OUT, sizes, strides, META: tl.constexpr):
    """META: rows, columns, depth, has bias, activation, group, has zero points, whether widened."""
    BM: tl.constexpr = META[0]
    BN: tl.constexpr = META[1]
    BK: tl.constexpr = META[2]
    GROUP: tl.constexpr = META[5]
    ZEROS: tl.constexpr = META[6]
    WIDE: tl.constexpr = META[7]
    m, n = place(sizes[0], sizes[1], META)
    groups = (sizes[2] + GROUP - 1) // GROUP
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, sizes[2], BK):
        k = k0 + tl.arange(0, BK)
        x = tl.load(
            X + m[:, None].to(tl.int64) * strides[0] + k[None, :],
            mask=(m[:, None] < sizes[0]) & (k[None, :] < sizes[2]),
            other=0,
        )
        w = codes(W, n, k0, sizes, META).to(tl.float32)
        group = n[:, None] * groups + k[None, :] // GROUP
        inside = (n[:, None] < sizes[1]) & (k[None, :] < sizes[2])
        if ZEROS:
            zero = n[:, None] * ((groups + 1) // 2) + k[None, :] // GROUP // 2
            both = tl.load(scales[1] + zero, mask=inside, other=0)
            w -= ((both >> (k[None, :] // GROUP % 2 * 4).to(tl.int8)) & 15).to(tl.float32)
        else:
            w -= 7
        w *= tl.load(scales[0] + group, mask=inside, other=0).to(tl.float32)
        if WIDE:
            acc = tl.dot(x.to(tl.float32), tl.trans(w), acc, input_precision="ieee")
        else:
            acc = tl.dot(x, tl.trans(w.to(x.dtype)), acc)
    finish(acc, BIAS, OUT, (m, n, strides[1]), sizes, META)


def w4a16(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    group: int = 64,
    activation: str = "none",
) -> Tensor:
    """x [...,K] float16 or bfloat16, weight [N,ceil(K/2)] int8, scale [N,G], zero [N,ceil(G/2)] -> [...,N] like x."""
    rows = rows_of(x)
    (count, depth), wide = rows.shape, len(weight)
    if weight.shape[1] != -(-depth // 2) or scale.shape != (wide, -(-depth // group)):
        raise ValueError(
            f"weight and scale don't fit {depth} features in groups of {group}: {weight.shape}, {scale.shape}"
        )
    out = torch.empty(count, wide, dtype=x.dtype, device=x.device)
    kind = kind_of(activation)
    meta = (height(count), 64, 64, bias is not None, kind, group, zero is not None, widened(rows))
    scale = scale.contiguous()
    w4a16_kernel[blocks(count, wide, meta)](
        rows,
        weight.contiguous(),
        (scale, scale if zero is None else zero.contiguous()),
        scale if bias is None else bias.contiguous(),
        out,
        (count, wide, depth),
        (rows.stride(0), out.stride(0)),
        meta,
        num_warps=4,
        num_stages=4,
    )
    return out.view(*x.shape[:-1], wide)


@triton.jit
def w4a8_kernel(X, W, beside, BIAS, OUT, sizes, strides, META: tl.constexpr):
    """META: rows, columns, depth, has bias, activation, group, rank to a power of two (0: none), whether widened."""
    BM: tl.constexpr = META[0]
    BN: tl.constexpr = META[1]
    BK: tl.constexpr = META[2]
    GROUP: tl.constexpr = META[5]
    RANK: tl.constexpr = META[6]
    WIDE: tl.constexpr = META[7]
    XS, GROUPS, CHANNELS, DOWN, UP = beside
    m, n = place(sizes[0], sizes[1], META)
    groups = (sizes[2] + GROUP - 1) // GROUP
    acc = tl.zeros((BM, BN), tl.int32)
    for k0 in range(0, sizes[2], BK):
        k = k0 + tl.arange(0, BK)
        x = tl.load(
            X + m[:, None].to(tl.int64) * strides[0] + k[None, :],
            mask=(m[:, None] < sizes[0]) & (k[None, :] < sizes[2]),
            other=0,
        )
        inside = (n[:, None] < sizes[1]) & (k[None, :] < sizes[2])
        step = tl.load(GROUPS + n[:, None] * groups + k[None, :] // GROUP, mask=inside, other=0)
        w = ((codes(W, n, k0, sizes, META) - 7) * step).to(tl.int8)
        acc = tl.dot(x, tl.trans(w), acc, out_dtype=tl.int32)
    xs = tl.load(XS + m, mask=m < sizes[0], other=0)
    ws = tl.load(CHANNELS + n, mask=n < sizes[1], other=0).to(tl.float32)
    out = acc.to(tl.float32) * xs[:, None] * ws[None, :]
    if RANK:
        r = tl.arange(0, RANK)
        seen = r < sizes[3]
        down = tl.load(
            DOWN + m[:, None] * sizes[3] + r, mask=(m[:, None] < sizes[0]) & seen[None, :], other=0
        )
        up = tl.load(
            UP + n[None, :] * sizes[3] + r[:, None], mask=(n[None, :] < sizes[1]) & seen[:, None], other=0
        )
        if WIDE:
            out = tl.dot(down.to(tl.float32), up.to(tl.float32), out, input_precision="ieee")
        else:
            out = tl.dot(down, up, out)
    finish(out, BIAS, OUT, (m, n, strides[1]), sizes, META)


def w4a8(
    x: Rows,
    weight: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None = None,
    *,
    branch: tuple[Tensor, Tensor] | None = None,
    group: int = 64,
    activation: str = "none",
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """x in int8 [...,K]; weight: codes [N,ceil(K/2)], whole scales [N,G], scales [N]; branch: [...,R] and up [N,R].

    The first part of the branch is what its narrow side makes of the unrounded input.
    """
    packed, steps, channels = weight
    rows = rows_of(x.stored)
    (count, depth), wide = rows.shape, len(packed)
    out = torch.empty(count, wide, dtype=dtype, device=rows.device)
    scale = x.scale.reshape(-1).float().contiguous()
    narrow, up = (
        (scale, scale) if branch is None else (rows_of(branch[0]).contiguous(), branch[1].contiguous())
    )
    rank = 0 if branch is None else up.shape[1]
    room = max(16, triton.next_power_of_2(rank)) if rank else 0
    kind, mixed = kind_of(activation), rank > 0 and widened(up)
    meta = (height(count), 64, 64, bias is not None, kind, group, room, mixed)
    w4a8_kernel[blocks(count, wide, meta)](
        rows,
        packed.contiguous(),
        (scale, steps.contiguous(), channels.contiguous(), narrow, up),
        scale if bias is None else bias.contiguous(),
        out,
        (count, wide, depth, rank),
        (rows.stride(0), out.stride(0)),
        meta,
        num_warps=4,
        num_stages=3,
    )
    return out.view(*x.stored.shape[:-1], wide)
