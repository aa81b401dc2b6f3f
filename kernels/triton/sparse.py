"""Block-sparse attention: each tile of queries walks the list of key tiles that it sees."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts import widened


@triton.jit
def sparse_kernel(Q, K, V, lists, OUT, sizes, strides, META: tl.constexpr):
    """META: tokens of a tile, features to a power of two, whether widened, tokens at once. `lists`: tiles, counts."""
    TILE: tl.constexpr = META[0]
    BD: tl.constexpr = META[1]
    WIDE: tl.constexpr = META[2]
    PART: tl.constexpr = META[3]
    PARTS: tl.constexpr = TILE // PART
    heads, queries, keys, features, columns, factor = sizes
    pair, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    image, head = pair // heads, pair % heads
    i, d = part * PART + tl.arange(0, PART), tl.arange(0, BD)
    here = (i[:, None] < queries) & (d[None, :] < features)
    Q += image * strides[0] + head * strides[1]
    q = tl.load(Q + i[:, None].to(tl.int64) * strides[2] + d[None, :], mask=here, other=0)
    K += image * strides[3] + head * strides[4]
    V += image * strides[6] + head * strides[7]
    line = pair * tl.cdiv(queries, TILE) + part // PARTS
    top = tl.full((PART,), -float("inf"), tl.float32)
    total = tl.zeros((PART,), tl.float32)
    acc = tl.zeros((PART, BD), tl.float32)
    for seen in range(0, tl.load(lists[1] + line) * PARTS):
        tile = tl.load(lists[0] + line * columns + seen // PARTS)
        j = tile * TILE + seen % PARTS * PART + tl.arange(0, PART)
        inside = (j[:, None] < keys) & (d[None, :] < features)
        k = tl.load(K + j[:, None].to(tl.int64) * strides[5] + d[None, :], mask=inside, other=0)
        v = tl.load(V + j[:, None].to(tl.int64) * strides[8] + d[None, :], mask=inside, other=0)
        if WIDE:
            s = tl.dot(q.to(tl.float32), tl.trans(k.to(tl.float32)), input_precision="ieee") * factor
        else:
            s = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
        s = tl.where(j[None, :] < keys, s, -float("inf"))
        now = tl.maximum(tl.maximum(top, tl.max(s, 1)), -1e30)  # a part may lie beyond the last key
        p = tl.exp2(s - now[:, None])
        shrink = tl.exp2(top - now)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if WIDE:
            acc = tl.dot(p, v.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
        top = now
    OUT += image * strides[9] + head * strides[10]
    tl.store(
        OUT + i[:, None].to(tl.int64) * strides[11] + d[None, :],
        (acc / total[:, None]).to(OUT.dtype.element_ty),
        mask=here,
    )


def attend_tiles(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, factor: float, size: int) -> Tensor:
    """q [B,H,L,D], k and v [B,H,S,D], kept [B,H,I,J], tiles of 16, 32, 64 or 128 tokens -> [B,H,L,D]."""
    if size not in (16, 32, 64, 128):
        raise ValueError(f"tiles on CUDA have 16, 32, 64 or 128 tokens, got {size}")
    batch, heads, queries, features = q.shape
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    order = kept.to(torch.int8).argsort(dim=3, descending=True, stable=True).to(torch.int32).contiguous()
    counts = kept.sum(3, dtype=torch.int32).contiguous()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    part, wide = min(size, 64), max(16, triton.next_power_of_2(features))
    meta = (size, wide, widened(q), part)
    sparse_kernel[(triton.cdiv(queries, part), batch * heads)](
        q,
        k,
        v,
        (order, counts),
        out,
        (heads, queries, k.shape[2], features, kept.shape[3], factor * math.log2(math.e)),
        (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3]),
        meta,
        num_warps=4,
        num_stages=2 if wide <= 128 else 1,
    )
    return out
