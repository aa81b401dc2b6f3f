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
Tasks: image, video
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor, nn

from ...kernels.attention.call import Call
from ...kernels.attention.choice import once
from ...kernels.attention.dispatch import AUTO, BACKENDS, lacking, pick, refused
from ..errors import NoSite
from ..sites import Attend, Layer, attention, attention_layers


@dataclass(frozen=True)
class Attention:
    """Hands attention to a backend."""

    slot: ClassVar[str] = "attention"

    backend: str = AUTO
    """auto (the fastest here, measured once), sdpa, dense, cudnn, xformers, flash, flash3, sage, native, int8, triton-int8, tiles or linear."""  # noqa: E501
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

        def compute(layer: Layer, q: Tensor, k: Tensor, v: Tensor, old: Attend) -> Tensor:
            if not self._means(layer) or not old.whole or k.shape[2] < self.smallest:
                return old(q, k, v)
            shared = q.shape[1] // k.shape[1]  # of grouped queries, as many share a key
            keys, values = (t.repeat_interleave(shared, 1) if shared > 1 else t for t in (k, v))
            call = Call(q, keys, values, old.bias, old.scale)
            if (said := refused(call, self.backend)) is not None:
                once(f"layers of {layer.kind} attention stay as they are: {said}", logging.WARNING)
                return old(q, k, v)
            chosen = pick(call, self.error) if self.backend == AUTO else BACKENDS[self.backend]
            return old(q, k, v) if chosen.name == "sdpa" else chosen.run(call)

        with attention(net, compute):
            yield

    def _check_sites(self, layers: list[Layer]) -> None:
        if any(self._means(layer) for layer in layers):
            return
        kinds, names = sorted({layer.kind for layer in layers}), [layer.name for layer in layers]
        shown = f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0]
        raise NoSite(
            f"sites {', '.join(self.sites)} fit no layer; there are {' and '.join(kinds)}, named {shown}"
        )

    def _means(self, layer: Layer) -> bool:
        return any(site == layer.kind or fnmatchcase(layer.name, site) for site in self.sites)
