"""Attention of other packages, for CUDA, where they are installed: xformers, flash-attn (2 and 3), SageAttention."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .call import Backend, Call, for_halves, on_cuda, unmasked


def _needs(package: str, remedy: str) -> Callable[[], str | None]:
    def lacking() -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"needs the package {package}, which is not installed ({remedy})"
        return on_cuda()

    return lacking


def _function(package: str, name: str) -> Any:
    """Not every one of them is in a package registry, so none is imported by its name."""
    return getattr(importlib.import_module(package), name)


def _xformers(call: Call) -> Tensor:
    attend = _function("xformers.ops", "memory_efficient_attention")
    q, k, v = (t.transpose(1, 2) for t in call[:3])
    out: Tensor = attend(q, k, v, attn_bias=_spread(call), scale=call.factor)
    return out.transpose(1, 2)


def _spread(call: Call) -> Tensor | None:
    """The bias as [B,H,L,S] in a memory whose rows begin at multiples of eight numbers, which its kernels want."""
    if call.bias is None:
        return None
    q, k = call.q, call.k
    room = q.new_empty(*q.shape[:3], -(-k.shape[2] // 8) * 8)[..., : k.shape[2]]
    if call.bias.dtype == torch.bool:
        return room.zero_().masked_fill_(~call.bias, -torch.inf)
    return room.copy_(call.bias)


def _flash(call: Call) -> Tensor:
    attend = _function("flash_attn", "flash_attn_func")
    out: Tensor = attend(*(t.transpose(1, 2) for t in call[:3]), softmax_scale=call.factor)
    return out.transpose(1, 2)


def _flash3(call: Call) -> Tensor:
    attend = _function("flash_attn_interface", "flash_attn_func")
    out = attend(*(t.transpose(1, 2) for t in call[:3]), softmax_scale=call.factor)
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first.transpose(1, 2)


def _sage(call: Call) -> Tensor:
    attend = _function("sageattention", "sageattn")
    out: Tensor = attend(*call[:3], tensor_layout="HND", is_causal=False, sm_scale=call.factor)
    return out


def _wide(most: int) -> Callable[[Call], str | None]:
    """No mask, half precision, so many features at most."""

    def refuses(call: Call) -> str | None:
        if call.q.shape[3] > most:
            return f"takes up to {most} features, and there are {call.q.shape[3]}"
        return for_halves(call) or unmasked(call)

    return refuses


XFORMERS = Backend("xformers", _needs("xformers", "pip install 'sfumato[xformers]'"), for_halves, _xformers)
FLASH = Backend("flash", _needs("flash_attn", "pip install 'sfumato[flash]'"), _wide(256), _flash)
FLASH3 = Backend(
    "flash3", _needs("flash_attn_interface", "it is built from source, for Hopper"), _wide(256), _flash3
)
SAGE = Backend("sage", _needs("sageattention", "pip install 'sfumato[sage]'"), _wide(128), _sage, error=0.05)
