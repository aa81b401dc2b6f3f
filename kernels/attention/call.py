"""One call of attention, as every backend is given it, and what can be said of it before it is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """softmax(scale q k^T + bias) v."""

    q: Tensor
    """[B,H,L,D]."""
    k: Tensor
    """[B,H,S,D]."""
    v: Tensor
    """[B,H,S,E]; E is D for most backends."""
    bias: Tensor | None = None
    """Added to the scores, or of booleans: True where a query sees a key. Broadcast to [B,H,L,S]."""
    scale: float | None = None
    """None is one over the square root of D."""

    @property
    def factor(self) -> float:
        return 1 / math.sqrt(self.q.shape[3]) if self.scale is None else self.scale


class Preparation(NamedTuple):
    """What q and k go through before their product: RMSNorm of each head's features, then rotary positions."""

    tokens: tuple[int, ...]
    """How many of them each stream has, one stream after the other."""
    norms: tuple[tuple[Tensor, Tensor], ...]
    """RMSNorm's weights [D] for q and for k, of each stream."""
    eps: float
    turn: tuple[Tensor, Tensor] | None = None
    """Cosine and sine [L,D] of all tokens; features 2i and 2i + 1 turn together."""


class Backend(NamedTuple):
    """One way of computing attention."""

    name: str
    lacking: Callable[[], str | None]
    """What this machine or installation lacks, in half a sentence; None if it can run here."""
    refuses: Callable[[Call], str | None]
    """What `cannot` says of values as wide as the keys."""
    run: Callable[[Call], Tensor]
    error: float = 0.0
    """Relative error (L2) on random tokens; 0 is exact up to the order of sums, infinity depends on the tokens."""
    chosen: bool = True
    """Whether `auto` may pick it."""
    prepared: Callable[[Call, Preparation], Tensor] | None = None
    """`run` for q and k as they were before their norm and positions, which it computes on the way; None can't."""
    any_width: bool = False
    """Whether values may be wider or narrower than the keys."""

    def cannot(self, call: Call) -> str | None:
        """Why it can't serve this call, in half a sentence; None if it can."""
        keys, values = call.k.shape[3], call.v.shape[3]
        if keys != values and not self.any_width:
            return f"takes values as wide as the keys, {keys}, and they are {values} wide"
        return self.refuses(call)


HALVES = (torch.float16, torch.bfloat16)


def check(call: Call) -> None:
    """ValueError for shapes that are none of attention's."""
    q, k, v, bias, _ = call
    if q.ndim != 4 or k.shape[:2] != q.shape[:2] or k.shape[3:] != q.shape[3:] or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"attention needs q [B,H,L,D], k [B,H,S,D] and v [B,H,S,E], got {list(q.shape)}, {list(k.shape)} "
            f"and {list(v.shape)}"
        )
    if not k.shape[2] or not q.shape[3]:
        raise ValueError(f"attention needs one key and one feature at least, k is {list(k.shape)}")
    if bias is not None:
        wanted = (*q.shape[:3], k.shape[2])
        given = (1,) * (4 - bias.ndim) + tuple(bias.shape)
        if bias.ndim > 4 or any(a not in (1, b) for a, b in zip(given, wanted, strict=True)):
            raise ValueError(f"bias must broadcast to {list(wanted)}, got {list(bias.shape)}")


def nothing() -> str | None:
    """For what every installation has."""
    return None


def on_cuda() -> str | None:
    return None if torch.cuda.is_available() else "needs a CUDA device, and torch sees none"


def for_halves(call: Call) -> str | None:
    """What kernels of tensor cores refuse."""
    if call.q.device.type != "cuda":
        return f"computes on CUDA, and the tensors are on {call.q.device.type}"
    return (
        None if call.q.dtype in HALVES else f"needs float16 or bfloat16, and the tensors are {call.q.dtype}"
    )


def unmasked(call: Call) -> str | None:
    return None if call.bias is None else "takes no mask or bias"
