"""Layers that hand over q and k as they were before their norm and rotary positions, with both beside them.

Such a layer runs as it stands, its norms swapped for nothing and without positions. Where its attention was not taken
with them after all (its backend can't, or another technique stands between), the layer is computed again as it was, and
is left alone from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.attention.call import Preparation
from ..sites import attention_modules, calls, swap

PROCESSORS = ("FluxAttnProcessor", "Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor")
"""Those of diffusers that norm each head of q and k, turn features in pairs, and attend, the text's tokens first."""

Waiting = dict[str, Preparation]
"""What layers, by name, have left out of q and k until their attention is computed; taking it out says it was."""


@contextmanager
def unprepared(net: nn.Module) -> Iterator[Waiting]:
    """Let all layers of such a form hand over q and k unprepared."""
    waiting: Waiting = {}
    with ExitStack() as stack:
        for name, module in attention_modules(net):
            if _processor(module) in PROCESSORS:
                stack.enter_context(calls(module, _answer(name, module, waiting)))
        yield waiting


def _processor(module: nn.Module) -> str:
    return type(module.processor).__name__


def _answer(
    name: str, module: nn.Module, waiting: Waiting
) -> Callable[[Mapping[str, Any], Callable[[], Any]], Any]:
    forward, alone = module.forward, False

    def answer(given: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        nonlocal alone
        before = None if alone else preparation(module, given)
        if before is None:
            return compute()
        waiting[name] = before
        try:
            with ExitStack() as stack:
                for norm in [n for n in (*_OWN, *_ADDED) if n in module._modules]:
                    stack.enter_context(swap(module, norm, nn.Identity()))
                out = forward(**{n: part for n, part in given.items() if n not in ("kwargs", _TURN)})
        finally:
            alone = waiting.pop(name, None) is not None
        return compute() if alone else out

    return answer


_TURN = "image_rotary_emb"
_OWN, _ADDED = ("norm_q", "norm_k"), ("norm_added_q", "norm_added_k")


def preparation(module: nn.Module, given: Mapping[str, Any]) -> Preparation | None:
    """Norms and positions of a call; None if anything about it is unexpected."""
    x, text, turn = given.get("hidden_states"), given.get("encoder_hidden_states"), given.get(_TURN)
    if not isinstance(x, Tensor) or _processor(module) not in PROCESSORS:
        return None
    if given.get("attention_mask") is not None or given.get("kwargs"):
        return None
    streams = {_OWN: x.shape[1]} if text is None else {_ADDED: text.shape[1], _OWN: x.shape[1]}
    found = [_norm(module, name, x.device) for names in streams for name in names]
    norms = [norm for norm in found if norm is not None]
    tokens = tuple(streams.values())
    if len(norms) != len(found) or len({norm.eps for norm in norms}) != 1 or norms[0].eps is None:
        return None
    if turn is not None and (len(turn) != 2 or any(t.shape[:-1] != (sum(tokens),) for t in turn)):
        return None
    weights = [norm.weight for norm in norms]
    pairs = tuple(zip(weights[::2], weights[1::2], strict=True))
    return Preparation(tokens, pairs, norms[0].eps, turn)


def _norm(module: nn.Module, name: str, device: torch.device) -> nn.RMSNorm | None:
    """If it is torch's own, with weights that lie where the layer computes, and nothing else acts in it."""
    norm = module._modules.get(name)
    if type(norm) is not nn.RMSNorm or norm._forward_pre_hooks or "forward" in vars(norm):
        return None
    return norm if norm.weight is not None and norm.weight.device == device else None
