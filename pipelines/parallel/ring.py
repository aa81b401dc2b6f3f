"""Ring attention: keys and values go from process to process, queries stay (arXiv:2310.01889, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .group import Team


def ring(
    team: Team,
    qkv: tuple[Tensor, Tensor, Tensor],
    tokens: list[int],
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale q k + bias) v for this process's q [B,H,l,D]; `tokens` are those of each process.

    The bias [B,1 or H,1 or N,N] stands in the order of the processes. Sums are float32, kept with the running maximum.
    """
    q, k, v = qkv
    size, me = team.size, team.rank
    starts = [sum(tokens[:rank]) for rank in range(size)]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if bias is not None and bias.shape[2] > 1:
        bias = bias.narrow(2, starts[me], tokens[me])
    most = q.new_full((*q.shape[:3], 1), float("-inf"), dtype=torch.float32)
    total, out = torch.zeros_like(most), torch.zeros_like(q, dtype=torch.float32)
    for turn in range(size):
        whose = (me - turn) % size
        scores = (q.float() @ k.float().mT) * scale
        if bias is not None:
            seen = bias.narrow(3, starts[whose], tokens[whose])
            hidden = seen.dtype == torch.bool
            scores = scores.masked_fill(~seen, float("-inf")) if hidden else scores + seen.float()
        higher = torch.maximum(most, scores.amax(-1, keepdim=True)) if scores.shape[-1] else most
        safe = higher.masked_fill(higher == float("-inf"), 0.0)
        weights, kept = (scores - safe).exp(), (most - safe).exp()
        total = total * kept + weights.sum(-1, keepdim=True)
        out = out * kept + weights @ v.float()
        most = higher
        if turn + 1 < size:
            ahead = tokens[(whose - 1) % size]
            k, v = team.shift(torch.stack((k, v)), (2, *k.shape[:2], ahead, k.shape[3]))
    return (out / total).to(q.dtype)
