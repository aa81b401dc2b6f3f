"""Layers that compute in 8 bits, in place of torch's own.

They keep oneDNN's form of the weights alone, a quarter of float32; those of `packed.py` keep what a file holds too.
"""

from __future__ import annotations

from torch import Tensor, nn

from .int8 import PackedConv, PackedLinear, geometry_of, weight_of
from .packed import packable


class Int8Linear(nn.Module):
    """x [...,I] float32 -> [...,O] float32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.product = PackedLinear(
            weight_of(layer.weight), None if layer.bias is None else layer.bias.detach()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int8Conv2d(nn.Module):
    """x [B,I,H,W] float32 -> [B,O,h,w] float32, channels last."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        bias = None if layer.bias is None else layer.bias.detach()
        self.product = PackedConv(weight_of(layer.weight), bias, geometry_of(layer))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.product.geometry}"


def int8(layer: nn.Module) -> nn.Module | None:
    """The layer in 8 bits; None if there is no such form of it."""
    found = packable(layer)
    if found is None:
        return None
    return Int8Linear(found) if isinstance(found, nn.Linear) else Int8Conv2d(found)
