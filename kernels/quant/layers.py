"""Layers that compute in 8 bits, in place of torch's own. They keep the packed weights alone."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from .int8 import Geometry, PackedConv, PackedLinear, weight_of


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
        stride, padding, dilation = (
            cast("tuple[int, int]", pair) for pair in (layer.stride, layer.padding, layer.dilation)
        )
        geometry = Geometry(stride, padding, dilation, layer.groups)
        bias = None if layer.bias is None else layer.bias.detach()
        self.product = PackedConv(weight_of(layer.weight), bias, geometry)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.product.geometry}"


def int8(layer: nn.Module) -> nn.Module | None:
    """The layer in 8 bits; None if there is no such form of it."""
    if isinstance(layer, nn.Linear):
        return Int8Linear(layer)
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return Int8Conv2d(layer)
    return None
