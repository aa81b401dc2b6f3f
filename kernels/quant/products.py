"""Products with scales per token and output channel, in plain torch: what kernels on CUDA are held against.

Here a token has a scale of its own, symmetric about zero; the products of `int8.py`, for processors, have one per
picture with a zero point.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
HALVES = (torch.float16, torch.bfloat16)
MOST = {torch.int8: 127.0, FP8: 448.0}


class Scaled(NamedTuple):
    """real = scale [...] * stored [...,K], stored in int8 or fp8 (e4m3)."""

    stored: Tensor
    scale: Tensor


class Pair(Protocol):
    """Stored numbers and scales, whoever made them."""

    @property
    def stored(self) -> Tensor: ...

    @property
    def scale(self) -> Tensor: ...


class Positions(Protocol):
    """Rotary: cos and sin [L,D]; `kind` says which features turn together, "pairs" or "halves"."""

    @property
    def cos(self) -> Tensor: ...

    @property
    def sin(self) -> Tensor: ...

    @property
    def kind(self) -> str: ...


def rows_of_8_bits(x: Tensor) -> Scaled:
    """x [...,K], each row with its own scale, rounded to the nearest with ties away from zero."""
    scale = _scales(x, torch.int8)
    steps = x.float() / scale.unsqueeze(-1)
    return Scaled((steps + steps.sign() * 0.5).trunc().clamp(-127, 127).to(torch.int8), scale)


def rows_of_fp8(x: Tensor) -> Scaled:
    scale = _scales(x, FP8)
    return Scaled((x.float() / scale.unsqueeze(-1)).to(FP8), scale)


def scaled(x: Pair, weight: Pair, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """x [...,K] by weight [N,K], float64 and exact up to its rounding."""
    out = F.linear(x.stored.double(), weight.stored.double()) * x.scale[..., None] * weight.scale
    if bias is not None:
        out = out + bias.double()
    return {"none": out, "silu": F.silu(out), "gelu": F.gelu(out, approximate="tanh")}[activation]


def normed(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def turned(x: Tensor, turn: Positions) -> Tensor:
    """x [...,L,D] with each feature turned together with its partner."""
    if turn.kind == "pairs":
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        partner = torch.stack([-second, first], -1).flatten(-2)
    else:
        first, second = x.chunk(2, -1)
        partner = torch.cat([-second, first], -1)
    return x * turn.cos + partner * turn.sin


def prepared(
    x: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    turn: Positions | None = None,
    shift: Tensor | None = None,
    divisor: Tensor | None = None,
) -> Scaled:
    """x [B,H,L,D]: RMSNorm by [D], positions, less [B,H,D], over [D], then rows of 8 bits."""
    x = x.float()
    if norm is not None:
        x = normed(x, norm, eps)
    if turn is not None:
        x = turned(x, turn)
    if shift is not None:
        x = x - shift[:, :, None]
    return rows_of_8_bits(x if divisor is None else x / divisor)


def _scales(x: Tensor, kind: torch.dtype) -> Tensor:
    most = x.float().abs().amax(-1)
    return torch.where(most > 0, most / MOST[kind], torch.ones_like(most))
