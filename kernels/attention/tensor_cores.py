"""Attention of our own on tensor cores: q k in 8 bits, weights times v in half precision or fp8."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .call import Backend, Call, Preparation, for_halves, unmasked

FP8_FROM = (8, 9)
"""The first compute capability with numbers in fp8."""


def _lacking() -> str | None:
    from ..triton_here import lacking

    return lacking()


def _lacking_fp8() -> str | None:
    found = _lacking()
    if found is None and (has := torch.cuda.get_device_capability()) < FP8_FROM:
        found = f"needs a GPU with fp8 (compute capability 8.9), and this one has {has[0]}.{has[1]}"
    return found


def _refuses(call: Call) -> str | None:
    if call.q.shape[3] > 256:
        return f"takes up to 256 features, and there are {call.q.shape[3]}"
    return for_halves(call) or unmasked(call)


def _run(fp8: bool) -> Callable[[Call], Tensor]:
    def run(call: Call) -> Tensor:
        from ..triton.attention import attend

        return attend(call.q, call.k, call.v, call.factor, fp8=fp8)

    return run


def _prepared(fp8: bool) -> Callable[[Call, Preparation], Tensor]:
    def run(call: Call, before: Preparation) -> Tensor:
        from ..triton.attention import attend

        return attend(call.q, call.k, call.v, call.factor, fp8=fp8, before=before)

    return run


TRITON_INT8 = Backend("triton-int8", _lacking, _refuses, _run(False), error=0.05, prepared=_prepared(False))
TRITON_FP8 = Backend("triton-fp8", _lacking_fp8, _refuses, _run(True), error=0.05, prepared=_prepared(True))
