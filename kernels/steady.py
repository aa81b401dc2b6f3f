"""Layers of torch computed picture by picture on a processor, so that a picture is the same in any batch.

torch's products, convolutions and group norms sum in another order when a batch is larger. Where a later layer rounds
its input to few bits, such a last bit makes the number go to another step, and a picture becomes another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MOST = 64
"""Pictures; what a network of clips lays along the first axis, as all pixels of all frames, goes at once."""


def one_by_one(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """layer(x) for x [B,...]."""
    if x.ndim < 2 or not 1 < len(x) <= MOST or x.device.type not in ("cpu", "meta"):
        return layer(x)
    return torch.cat([layer(one) for one in x.split(1)])


class SteadyLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return one_by_one(super().forward, input)


class SteadyConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return one_by_one(super().forward, input)


class SteadyNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return one_by_one(super().forward, input)


STEADY: dict[type, type[nn.Module]] = {
    nn.Linear: SteadyLinear,
    nn.Conv2d: SteadyConv2d,
    nn.GroupNorm: SteadyNorm,
}


def steady(net: nn.Module) -> nn.Module:
    """The network, each layer of torch's own given its steady class."""
    for layer in net.modules():
        layer.__class__ = STEADY.get(type(layer), type(layer))
    return net
