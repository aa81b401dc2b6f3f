"""Attention of our own on tensor cores: q k in 8 bits, weights times v in half precision or fp8."""

from __future__ import annotations

from torch import Tensor

from .call import Backend, Call, for_halves, unmasked


def _lacking() -> str | None:
    from ..triton_here import lacking

    return lacking()


def _refuses(call: Call) -> str | None:
    if call.q.shape[3] > 256:
        return f"takes up to 256 features, and there are {call.q.shape[3]}"
    return for_halves(call) or unmasked(call)


def _run(call: Call) -> Tensor:
    from ..triton.attention import attend

    return attend(call.q, call.k, call.v, call.factor)


TRITON_INT8 = Backend("triton-int8", _lacking, _refuses, _run, error=0.05)
