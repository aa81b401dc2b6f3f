"""Attention in float32 in C++, on processors with AVX-512: torch's result up to the order of sums, in less time.

For no mask, or one by keys alone; a batch is its singles, bit for bit.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from ..native.library import library

MOST_FEATURES = 512
HIDDEN = 1e30
"""Powers of two that no score reaches; less than nothing, so that a sum of them stays finite."""


def available() -> str | None:
    """None where the kernel runs; else what is lacking."""
    return library().lacking or None


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """q [B,H,L,D], k and v [B,H,S,D] float32 on a processor -> [B,H,L,D], whose memory is that of [B,L,H,D].

    `bias` [B or 1,H or 1,S] is added to the scores of each key.
    """
    if bias is None:
        return called("sfumato_attention_float", MOST_FEATURES, (q, k, v), scale, None, 0, 0)
    batch, heads, tokens = k.shape[:3]
    if (
        bias.ndim != 3
        or bias.shape[0] not in (1, batch)
        or bias.shape[1] not in (1, heads)
        or bias.shape[2] != tokens
    ):
        raise ValueError(f"bias must be [1 or {batch},1 or {heads},{tokens}], got {list(bias.shape)}")
    powers = (bias.float() / math.log(2)).clamp(-HIDDEN, HIDDEN).contiguous()
    apart = (0 if n == 1 else powers.stride(axis) for axis, n in enumerate(powers.shape[:2]))
    return called("sfumato_attention_float", MOST_FEATURES, (q, k, v), scale, powers.data_ptr(), *apart)


def called(
    name: str, most: int, tensors: tuple[Tensor, Tensor, Tensor], scale: float | None, *bias: int | None
) -> Tensor:
    """By one of the kernels, which takes up to `most` features; `bias` is its address, and floats between its rows."""
    functions = library().functions
    assert functions is not None, library().lacking
    q, k, v = tensors
    batch, heads, queries, features = q.shape
    if not 0 < features <= most or {q.dtype, k.dtype, v.dtype} != {torch.float32}:
        raise ValueError(f"q must be float32 with 1..{most} features, got {q.dtype} with {features}")
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != features or not k.shape[2]:
        raise ValueError(
            f"k and v must be [{batch},{heads},S,{features}], got {list(k.shape)}, {list(v.shape)}"
        )
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    out = torch.empty(batch, queries, heads, features).transpose(1, 2)
    strides = (ctypes.c_int64 * 12)(*(t.stride(axis) for t in (q, k, v, out) for axis in (0, 1, 2)))
    failed = functions[name](
        *(ctypes.c_void_p(t.data_ptr()) for t in (q, k, v, out)),
        strides,
        *(batch, heads, queries, k.shape[2], features),
        ctypes.c_float(1 / math.sqrt(features) if scale is None else scale),
        torch.get_num_threads(),
        *map(ctypes.c_void_p, bias),
    )
    if failed:
        raise MemoryError(f"attention over {k.shape[2]} tokens found no memory for its packed keys")
    return out
