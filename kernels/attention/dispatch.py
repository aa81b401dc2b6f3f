"""The one door to attention: every backend under its name, or the fastest that is exact enough."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from . import int8, linear, native, tiles
from .call import Backend, Call, check, nothing, unmasked
from .choice import fastest
from .dense import CUDNN, DENSE, SDPA
from .packages import FLASH, FLASH3, SAGE, XFORMERS
from .tensor_cores import TRITON_FP8, TRITON_INT8


def _kernel_lacks() -> str | None:
    found = native.available()
    return None if found is None else f"lacks its kernel ({found})"


def _on_processor(call: Call, most: int) -> str | None:
    """What our kernels in C++ refuse, which take up to `most` features."""
    if call.q.device.type != "cpu" or {t.dtype for t in call[:3]} != {torch.float32}:
        return (
            f"computes in float32 on a processor, and the tensors are {call.q.dtype} on {call.q.device.type}"
        )
    if call.q.shape[3] > most:
        return f"takes up to {most} features, and there are {call.q.shape[3]}"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in call[:4]):
        return "has no gradients, and the tensors ask for them"
    return None


def _native_refuses(call: Call) -> str | None:
    refused = _on_processor(call, native.MOST_FEATURES)
    if refused is None and call.bias is not None and _by_key(call) is None:
        return "takes a mask by keys alone"
    return refused


def _by_key(call: Call) -> Tensor | None:
    """The bias as [B or 1,H or 1,S], if all queries share it."""
    bias, keys = call.bias, call.k.shape[2]
    if bias is None or (bias.ndim > 1 and bias.shape[-2] != 1):
        return None
    flat = bias.view((1,) * (4 - bias.ndim) + bias.shape)[:, :, 0].expand(-1, -1, keys)
    return torch.zeros(flat.shape).masked_fill(~flat, -torch.inf) if flat.dtype == torch.bool else flat


def _native(call: Call) -> Tensor:
    return native.attend(call.q, call.k, call.v, call.scale, _by_key(call))


def _int8_refuses(call: Call) -> str | None:
    return _on_processor(call, int8.MOST_FEATURES) or unmasked(call)


def _int8(call: Call) -> Tensor:
    return int8.attend(call.q, call.k, call.v, call.scale)


def _tiles(call: Call) -> Tensor:
    return tiles.attend(call.q, call.k, call.v, tiles.estimated(call.q, call.k, call.scale), call.scale)


def _linear(call: Call) -> Tensor:
    return linear.attend(call.q, call.k, call.v)


NATIVE = Backend("native", _kernel_lacks, _native_refuses, _native)
INT8 = Backend("int8", _kernel_lacks, _int8_refuses, _int8, error=0.05)
TILES = Backend("tiles", nothing, unmasked, _tiles, error=float("inf"), chosen=False)
LINEAR = Backend("linear", nothing, unmasked, _linear, error=float("inf"), chosen=False, any_width=True)

BACKENDS: Mapping[str, Backend] = {
    b.name: b
    for b in (
        *(SDPA, DENSE, CUDNN, XFORMERS, FLASH, FLASH3, SAGE),
        *(NATIVE, INT8, TRITON_INT8, TRITON_FP8, TILES, LINEAR),
    )
}
"""All of them. `auto` beside these names picks one."""
AUTO = "auto"


@cache
def _lacking(name: str) -> str | None:
    return BACKENDS[name].lacking()


def lacking(name: str) -> str | None:
    """Why this backend can't run here, in one sentence with the remedy; None if it can. ValueError for no name."""
    if name == AUTO:
        return None
    if name not in BACKENDS:
        raise ValueError(f"backend must be {AUTO} or one of {', '.join(BACKENDS)}, got {name!r}")
    found = _lacking(name)
    return None if found is None else f"attention by {name} {found}; take {AUTO} or sdpa"


def refused(call: Call, name: str) -> str | None:
    """Why this backend can't serve this call, in one sentence; None if it can."""
    if name == AUTO:
        return None
    found = lacking(name)
    if found is None and (why := BACKENDS[name].cannot(call)) is not None:
        found = f"attention by {name} {why}; take {AUTO} or sdpa"
    return found


def pick(call: Call, error: float = 0.0) -> Backend:
    """The fastest of the backends that run here, serve this call, and err by no more than `error`."""
    fit = [
        b
        for b in BACKENDS.values()
        if b.chosen and b.error <= error and _lacking(b.name) is None and b.cannot(call) is None
    ]
    return fastest(call, fit)


def hands_preparation(name: str, error: float) -> bool:
    """Whether a backend that may be taken here prepares q and k itself."""
    names = [b.name for b in BACKENDS.values() if b.chosen and b.error <= error] if name == AUTO else [name]
    return any(BACKENDS[n].prepared is not None and _lacking(n) is None for n in names)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    site: str | None = None,
    backend: str = AUTO,
    error: float = 0.0,
) -> Tensor:
    """softmax(scale q k^T + bias) v: q [B,H,L,D], k [B,H,S,D], v [B,H,S,E] -> [B,H,L,E].

    `error` is the relative error that `auto` may take for speed; `site` names the place in messages.
    """
    call = Call(q, k, v, bias, scale)
    check(call)
    found = refused(call, backend)
    if found is not None:
        raise ValueError(found if site is None else f"{site}: {found}")
    return (pick(call, error) if backend == AUTO else BACKENDS[backend]).run(call)
