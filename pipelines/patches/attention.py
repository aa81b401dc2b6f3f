"""attention: which kernel computes the attention of which layers.

Paper: none, because it is a choice of kernels; each states its own in kernels/attention
Shapes: q [B,heads,L,D], k and v [B,heads,S,D] of any attention layer
Units and ranges: error 0 and up, relative (L2); smallest 1 and up, keys
Cost: none; auto measures each new class of shapes once per machine, with a few calls of each kernel that would do
Neutral: backend = sdpa, torch's own
Errors: ValueError for a setting outside its range, a backend that can't run here (it says what is lacking), or a
    network without the site 'attention' or any of `sites`
Differs: layers that a backend can't serve (with a mask, in another precision) are computed as before, and that is
    logged once. auto takes exact backends only, unless `error` allows more

    network without the site 'attention'
Differs: layers of FLUX's form hand q and k to triton-int8 and triton-fp8 before their norm and rotary positions, which
    these compute on the way. Layers that a backend can't serve (with a mask, in another precision) are computed as
    before, and that is logged once. auto takes exact backends only, unless `error` allows more
Tasks: image, video
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor, nn

from ...kernels.attention.call import Backend, Call
from ...kernels.attention.choice import once
from ...kernels.attention.dispatch import AUTO, BACKENDS, hands_preparation, lacking, pick, refused
from ..errors import NoSite
from ..sites import Attend, Layer, attention, attention_layers
from ._preparation import unprepared


@dataclass(frozen=True)
class Attention:
    """Hands attention to a backend."""

    slot: ClassVar[str] = "attention"

    backend: str = AUTO
    """auto (the fastest here, measured once), sdpa, dense, cudnn, xformers, flash, flash3, sage, native, int8, triton-int8, triton-fp8, tiles or linear."""  # noqa: E501
    sites: tuple[str, ...] = ("*",)
    """Which layers: self, cross, joint, or dotted names with * for anything."""
    error: float = 0.0
    """Relative error that auto may take for speed, 0 and up; the 8-bit kernels state 0.05."""
    smallest: int = 1
    """Keys that a layer must have, 1 and up."""

    def __post_init__(self) -> None:
        if self.backend not in (AUTO, *BACKENDS):
            raise ValueError(f"backend must be {AUTO} or one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if not self.error >= 0:
            raise ValueError(f"error must be 0 or more, got {self.error}")
        if self.smallest < 1:
            raise ValueError(f"smallest must be 1 or more, got {self.smallest}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        self._check_sites(attention_layers(net))
        why = lacking(self.backend)
        if why is not None:
            raise ValueError(why)
        if self.backend == "sdpa":
            yield
            return

        with ExitStack() as stack:
            prepares = hands_preparation(self.backend, self.error)
            waiting = stack.enter_context(unprepared(net)) if prepares else {}

            def compute(layer: Layer, q: Tensor, k: Tensor, v: Tensor, old: Attend) -> Tensor:
                call = self._call(layer, q, k, v, old)
                chosen = None if call is None else self._chosen(layer, call)
                if call is None or chosen is None:
                    return old(q, k, v)
                before = waiting.get(layer.name)
                if before is None:
                    return chosen.run(call)
                if chosen.prepared is None or {q.shape[2], k.shape[2]} != {sum(before.tokens)}:
                    return old(q, k, v)  # the layer is computed again
                return chosen.prepared(call, waiting.pop(layer.name))

            stack.enter_context(attention(net, compute))
            yield

    def _check_sites(self, layers: list[Layer]) -> None:
        if any(self._means(layer) for layer in layers):
            return
        kinds, names = sorted({layer.kind for layer in layers}), [layer.name for layer in layers]
        shown = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        raise NoSite(
            f"sites {', '.join(self.sites)} fit no layer; there are {' and '.join(kinds)}, named {shown}"
        )

    def _call(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, old: Attend) -> Call | None:
        """If the layer is meant, and its attention one that a backend can be asked for."""
        if not self._means(layer) or not old.whole or k.shape[2] < self.smallest:
            return None
        shared = q.shape[1] // k.shape[1]  # of grouped queries, as many share a key
        keys, values = (t.repeat_interleave(shared, 1) if shared > 1 else t for t in (k, v))
        return Call(q, keys, values, old.bias, old.scale)

    def _chosen(self, layer: Layer, call: Call) -> Backend | None:
        """None is torch's own, as it was."""
        if (said := refused(call, self.backend)) is not None:
            once(f"layers of {layer.kind} attention stay as they are: {said}", logging.WARNING)
            return None
        chosen = pick(call, self.error) if self.backend == AUTO else BACKENDS[self.backend]
        return None if chosen.name == "sdpa" else chosen

    def _means(self, layer: Layer) -> bool:
        return any(site == layer.kind or fnmatchcase(layer.name, site) for site in self.sites)
