"""Block-sparse attention: each tile of queries sees the tiles of keys that hold most of its weight.

Tokens lie in tiles of `size` one after the other; the last may be shorter. A mask `kept` [B,H,I,J] says which tile J of
keys a tile I of queries sees, of its own for every head. What is left out is really skipped: on a processor the kept
tiles are gathered, and rows that see as many are computed together; on CUDA a Triton kernel walks the list. The share
of the weights that is lost bounds the error: |out - dense| <= 2 lost max|v|.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..triton_here import lacking
from .call import Call
from .dense import reference as dense

SIZE = 128
SCORES = 2**20
"""Numbers of scores that are held at once at most."""


def count(tokens: int, size: int) -> int:
    return -(-tokens // size)


def masses(q: Tensor, k: Tensor, size: int = SIZE, scale: float | None = None) -> Tensor:
    """How much of its weight each tile of queries lays on each tile of keys, [B,H,I,J]; rows sum to 1."""
    factor, keys = Call(q, k, k, None, scale).factor, k.shape[2]
    padding = -keys % size
    parts = []
    for rows in q.split(size, 2):
        weights = (factor * rows.float() @ k.float().mT).softmax(3)
        parts.append(F.pad(weights, (0, padding)).unflatten(3, (-1, size)).sum(4).mean(2))
    return torch.stack(parts, 2)


def fewest(masses: Tensor, mass: float, most: int = 0) -> Tensor:
    """The heaviest tiles that together hold `mass` of each row's weight, no more than `most` if that is not 0."""
    sizes, order = masses.sort(3, descending=True)
    before = sizes.cumsum(3) - sizes
    kept = before < mass
    if most:
        kept[..., most:] = False
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter_(3, order, kept)


def estimated(
    q: Tensor, k: Tensor, scale: float | None = None, size: int = SIZE, mass: float = 0.95, most: int = 0
) -> Tensor:
    """`fewest` of what the tiles' mean tokens would lay on each other; costs nothing, and may err."""
    wanted = [F.pad(t.float(), (0, 0, 0, -t.shape[2] % size)).unflatten(2, (-1, size)).sum(3) for t in (q, k)]
    means = [
        total / _lengths(t.shape[2], size, t.device)[:, None] for total, t in zip(wanted, (q, k), strict=True)
    ]
    factor = Call(q, k, k, None, scale).factor
    scores = factor * means[0] @ means[1].mT + _lengths(k.shape[2], size, k.device).log()
    kept = fewest(scores.softmax(3), mass, most)
    if q.shape[2] == k.shape[2]:  # self-attention: near tokens matter, whatever the means say
        kept.diagonal(dim1=2, dim2=3).fill_(True)
    return kept


def attend(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float | None = None, size: int = SIZE
) -> Tensor:
    """q [B,H,L,D], k and v [B,H,S,D], kept [B,H,I,J] -> [B,H,L,D]."""
    wanted = (*q.shape[:2], count(q.shape[2], size), count(k.shape[2], size))
    if tuple(kept.shape) != wanted:
        raise ValueError(f"kept must be {list(wanted)} for tiles of {size} tokens, got {list(kept.shape)}")
    if q.device.type == "cuda" and lacking() is None:
        from ..triton.sparse import attend_tiles

        return attend_tiles(q, k, v, kept, Call(q, k, v, None, scale).factor, size)
    return gathered(q, k, v, kept, scale, size)


def gathered(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float | None = None, size: int = SIZE
) -> Tensor:
    """`attend` by gathering what is kept, on any device."""
    (batch, heads, queries, features), factor = q.shape, Call(q, k, v, None, scale).factor
    rows, columns = kept.shape[2:]
    tail = k.shape[2] - (columns - 1) * size
    tiled = [F.pad(t, (0, 0, 0, -t.shape[2] % size)).reshape(-1, size, t.shape[3]) for t in (q, k, v)]
    out = torch.empty_like(tiled[0])
    flat = kept.reshape(-1, columns)
    counts = flat.sum(1)
    order = flat.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    first = torch.arange(batch * heads, device=q.device).repeat_interleave(rows) * columns
    for number in counts.unique().tolist():
        some = (counts == number).nonzero()[:, 0]
        for part in some.split(max(1, SCORES // (number * size * size))):
            seen = order[part, :number]
            at = seen + first[part, None]
            keys, values = (t[at].flatten(1, 2) for t in tiled[1:])
            scores = torch.bmm(tiled[0][part] * factor, keys.mT)
            if tail < size:
                scores = scores.masked_fill(_beyond(seen == columns - 1, size, tail), -torch.inf)
            out[part] = torch.bmm(scores.softmax(2), values)
    return out.view(batch, heads, -1, features)[:, :, :queries]


def reference(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float | None = None, size: int = SIZE
) -> Tensor:
    """Dense attention with the tiles spelled out as a mask."""
    mask = kept.repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, : q.shape[2], : k.shape[2]]
    return dense(Call(q, k, v, mask, scale))


def _beyond(last: Tensor, size: int, tail: int) -> Tensor:
    """[N,1,S] of booleans, of [N,n] where the short last tile lies: the zeros that fill it up."""
    return (last[..., None] & (torch.arange(size, device=last.device) >= tail)).flatten(1)[:, None]


def _lengths(tokens: int, size: int, device: torch.device) -> Tensor:
    """[count] tokens of each tile."""
    lengths = torch.full((count(tokens, size),), float(size), device=device)
    lengths[-1] = tokens - (len(lengths) - 1) * size
    return lengths
