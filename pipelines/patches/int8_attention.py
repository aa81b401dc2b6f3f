"""int8-attention: self-attention with both products in 8 bits, on processors.

Paper: arXiv:2410.02367 (SageAttention), sections 3.2 and 3.3, for processors with AVX-512 VNNI
Shapes: q [B,heads,L,D], k and v [B,heads,S,D] of any attention layer, D up to 256
Units and ranges: smallest 1 and up, keys
Cost: none; a layer takes 0.35 to 0.4 of the time of torch's attention (measured at 1024 to 4096 tokens)
Neutral: smallest above every layer's number of keys
Errors: ValueError for a setting outside its range, where the kernel can't run (it says what is lacking), or a network
    without the site 'attention'
Differs: V and the weights are in 8 bits too (there float16), weights relative to the greatest of 256 keys, which lose
    their own mean, V by channel; up to 256 keys have a scale each, as a text's first token lies far from the others.
    Layers with a mask, with few keys, or not in float32 on a processor are computed as before
Tasks: image, video
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...kernels.attention.int8 import MOST_FEATURES, attend, available
from ..sites import Attend, Layer, attention, attention_modules


@dataclass(frozen=True)
class Int8Attention:
    """Exchanges the attention of layers with many keys."""

    slot: ClassVar[str] = "attention"

    smallest: int = 64
    """Keys that a layer must have, 1 and up."""

    def __post_init__(self) -> None:
        if self.smallest < 1:
            raise ValueError(f"smallest must be 1 or more, got {self.smallest}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        attention_modules(net)
        lacking = available()
        if lacking:
            raise ValueError(f"int8-attention: {lacking}; leave it out")

        def compute(layer: Layer, q: Tensor, k: Tensor, v: Tensor, old: Attend) -> Tensor:
            fits = q.dtype == torch.float32 and q.device.type == "cpu" and q.shape[3] <= MOST_FEATURES
            fits = fits and k.shape == v.shape and k.shape[1] == q.shape[1]
            if not fits or not old.plain or k.shape[2] < self.smallest:
                return old(q, k, v)
            return attend(q, k, v, old.scale)

        with attention(net, compute):
            yield
