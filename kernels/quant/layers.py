"""Layers that compute in 8 bits, in place of torch's own.

They keep one form of the weights alone, a quarter of float32; those of `packed.py` keep what a file holds too. Where
the kernels in C++ run (`fused.py`) an input has a scale per row, or per picture before a window; else oneDNN's
(`int8.py`) take a scale per picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ..native.around import PLAIN, After, Norm, available
from ..native.products import Linear
from ..winograd import fits
from .bytewise import Bytewise
from .fused import MOST_INPUTS, POINTWISE, Matrix
from .int8 import PackedConv, PackedLinear, geometry_of, weight_of
from .packed import QuantConv2d, QuantLinear, packable
from .winograd_int8 import Tiled

LEAST_INPUTS = 9 * 32
"""Of a 3 x 3 convolution that goes by tiles: the map costs what fewer save."""


class Int8Linear(Linear):
    """x [...,I] float32 -> [...,O] float32."""

    def __init__(self, layer: nn.Linear, product: Matrix | PackedLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.product = product

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(self.product, PackedLinear):
            return self.product(input)
        return self.after(input)


class Int8Conv2d(nn.Module):
    """x [B,I,H,W] float32 -> [B,O,h,w] float32, channels last."""

    def __init__(self, layer: nn.Conv2d, product: Matrix | Tiled | PackedConv) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.geometry, self.product = geometry_of(layer), product
        self.pointwise = layer.kernel_size == (1, 1) and self.geometry == POINTWISE

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.product, PackedConv):
            return self.product(x)
        return self.after(x)

    def after(self, x: Tensor, after: After = PLAIN, norm: Norm | None = None, times: int = 1) -> Tensor:
        """With a norm and a repetition of the pixels before, and something after; not with a `PackedConv`."""
        if isinstance(self.product, Tiled):
            return self.product(x, after, norm, times)
        product = cast("Matrix", self.product)
        if self.pointwise and norm is None and times == 1:
            pixels = x.permute(0, 2, 3, 1).contiguous()
            if after.residual is not None:
                after = after._replace(residual=after.residual.reshape(-1, 1, 1, self.out_channels))
            out = product(product.rows(pixels.view(-1, self.in_channels)), after=after)
            return out.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)
        stored = product.windows(x, self.geometry.padding, norm, times)
        return product(stored, self.geometry, after).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.geometry}"


def by_tiles(shape: Sequence[int], tiled: int) -> bool:
    """Whether the kernels in C++ take a weight that fits by Winograd's tiles, with 16 bytes of each 9 instead of 9."""
    return math.prod(shape[1:]) >= LEAST_INPUTS and math.prod(shape) <= tiled


def int8(layer: nn.Module, *, tiled: int = 0) -> nn.Module | None:
    """The layer in 8 bits; None if there is no such form of it. `tiled`: see `pipelines/converts/int8.py`.

    One of packed weights keeps its own 8 bits, and its own scale of inputs.
    """
    if isinstance(layer, QuantLinear | QuantConv2d):
        made = layer.widened() if layer.bare() else None
        return None if made is None else _layer(layer, made.product)
    found = packable(layer)
    if found is None:
        return None
    bias = None if found.bias is None else found.bias.detach()
    if isinstance(found, nn.Linear):
        return _layer(found, Bytewise(weight_of(found.weight), bias).product)
    geometry, whole = geometry_of(found), found.groups == 1 and found.weight[0].numel() <= MOST_INPUTS
    if available() is None and whole and fits(found) and by_tiles(found.weight.shape, tiled):
        return _layer(found, Tiled(found.weight, bias))
    return _layer(found, Bytewise(weight_of(found.weight), bias, geometry).product)


def _layer(layer: nn.Linear | nn.Conv2d, product: Matrix | Tiled | PackedLinear | PackedConv) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return Int8Linear(layer, cast("Matrix | PackedLinear", product))
    return Int8Conv2d(layer, cast("Matrix | Tiled | PackedConv", product))


def untold(layer: nn.Module) -> int:
    """Bytes of weights that are in no tensor of a layer: in oneDNN's order, or a second form of packed ones."""
    if isinstance(layer, QuantLinear | QuantConv2d):
        second = layer.weight.device.type == "cpu" and layer.fits_bytes(layer.activation)
        return layer.rows * layer.count if second else 0
    packed = isinstance(layer, Int8Linear | Int8Conv2d) and isinstance(
        layer.product, PackedLinear | PackedConv
    )
    return layer.product.nbytes if packed else 0
