"""What the kernels share: their order over the output, epilogues, and how tensors are handed to them.

Operands that belong together go in tuples: sizes, strides, scales. `META` holds what is fixed when a kernel is
compiled, block sizes first. In the interpreter bfloat16 and fp8 are bit patterns that its products would take for whole
numbers, so there they are widened before.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

KINDS = ("none", "silu", "gelu")
"""Activations of an epilogue; gelu is the one with tanh."""


@triton.jit
def place(rows, columns, META: tl.constexpr):
    """Row and column of this program's block; neighbours share rows of weights in the cache."""
    BM: tl.constexpr = META[0]
    BN: tl.constexpr = META[1]
    TALL: tl.constexpr = 8
    pid = tl.program_id(0)
    tall, wide = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    first = pid // (TALL * wide) * TALL
    height = tl.minimum(tall - first, TALL)
    inside = pid % (TALL * wide)
    m = (first + inside % height) * BM + tl.arange(0, BM)
    n = inside // height * BN + tl.arange(0, BN)
    return m, n


@triton.jit
def activated(x, KIND: tl.constexpr):
    if KIND == 1:
        x = x * tl.sigmoid(x)
    if KIND == 2:  # x (1 + tanh u) / 2 = x sigmoid(2 u)
        x = x * tl.sigmoid(2 * 0.7978845608028654 * (x + 0.044715 * x * x * x))
    return x


@triton.jit
def finish(acc, BIAS, OUT, at, sizes, META: tl.constexpr):
    """Bias and activation of a float32 block, rounded once on its way out. META[3]: has bias, META[4]: activation."""
    HAS_BIAS: tl.constexpr = META[3]
    KIND: tl.constexpr = META[4]
    m, n, row = at
    if HAS_BIAS:
        acc += tl.load(BIAS + n, mask=n < sizes[1], other=0).to(tl.float32)[None, :]
    acc = activated(acc, KIND)
    inside = (m[:, None] < sizes[0]) & (n[None, :] < sizes[1])
    tl.store(OUT + m[:, None].to(tl.int64) * row + n[None, :], acc.to(OUT.dtype.element_ty), mask=inside)


def kind_of(activation: str) -> int:
    if activation not in KINDS:
        raise ValueError(f"activation must be one of {', '.join(KINDS)}, got {activation!r}")
    return KINDS.index(activation)


def widened(tensor: Tensor) -> bool:
    """Whether products of this tensor need float32: in the interpreter, for what numpy has no type of."""
    return isinstance(place, InterpretedFunction) and str(tensor.dtype) not in (
        "torch.float16",
        "torch.float32",
        "torch.int8",
    )


def rows_of(x: Tensor) -> Tensor:
    """[...,K] as [M,K] whose features are neighbours in memory."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def height(rows: int) -> int:
    """Rows of a block: few for few tokens, which keeps the units busy that read weights."""
    return 16 if rows <= 16 else 32 if rows <= 32 else 64 if rows <= 64 else 128


def blocks(rows: int, columns: int, meta: tuple[int, ...]) -> tuple[int]:
    return (triton.cdiv(rows, meta[0]) * triton.cdiv(columns, meta[1]),)
