"""What stays in float32 beside layers in 8 bits, computed alike in any batch.

Rounding to 8 bits makes a large difference of a small one: a number that lies between two steps goes to either. So a
last bit that depends on the batch, as it does in torch's products and group norms, would become another picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...kernels.dense import dense
from ...kernels.native.around import available
from ...kernels.quant.layers import Int8Conv2d, Int8Linear
from ._layers import replaced


class AloneNorm(nn.GroupNorm):
    """torch splits a batch among threads, and with it the sums."""

    def forward(self, input: Tensor) -> Tensor:
        return _one_by_one(super().forward, input)


class AloneConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return _one_by_one(super().forward, input)


def _one_by_one(layer: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    return layer(pictures) if len(pictures) == 1 else torch.cat([layer(x) for x in pictures.split(1)])


ALONE: dict[type, type[nn.Module]] = {nn.GroupNorm: AloneNorm, nn.Conv2d: AloneConv}


def steady(net: nn.Module) -> nn.Module:
    """The network, if it has layers in 8 bits, with all others so that a picture is the same in any batch."""
    if available() is not None or not any(
        isinstance(layer, Int8Linear | Int8Conv2d) for layer in net.modules()
    ):
        return net

    def same(layer: nn.Module) -> nn.Module | None:
        plain = type(layer) is nn.Linear and layer.weight.dtype == torch.float32
        return dense(layer) if plain else None

    replaced(net, same)
    for layer in net.modules():
        layer.__class__ = ALONE.get(type(layer), type(layer))
    return net
