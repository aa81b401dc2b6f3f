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
from .fused import MOST_INPUTS, POINTWISE, Matrix, stored_pictures, stored_rows
from .int8 import Geometry, PackedConv, PackedLinear, geometry_of, weight_of
from .packed import packable
from .winograd_int8 import Tiled

LEAST_INPUTS = 9 * 32
"""Of a 3 x 3 convolution that goes by tiles: the map costs what fewer save."""


class Int8Linear(Linear):
    """x [...,I] float32 -> [...,O] float32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, bias = weight_of(layer.weight), None if layer.bias is None else layer.bias.detach()
        fits = available() is None and self.in_features <= MOST_INPUTS
        self.product: Matrix | PackedLinear = Matrix(weight, bias) if fits else PackedLinear(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.product, PackedLinear):
            return self.product(x)
        return self.after(x)


class Int8Conv2d(nn.Module):
    """x [B,I,H,W] float32 -> [B,O,h,w] float32, channels last."""

    def __init__(self, layer: nn.Conv2d, tiled: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.geometry = geometry_of(layer)
        self.product = _convolution(layer, self.geometry, tiled)
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
            out = product(stored_rows(pixels.view(-1, self.in_channels)), after=after)
            return out.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)
        return product(stored_pictures(x, self.geometry.padding, norm, times), self.geometry, after).permute(
            0, 3, 1, 2
        )

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.geometry}"


def _convolution(layer: nn.Conv2d, geometry: Geometry, tiled: int) -> Matrix | Tiled | PackedConv:
    bias = None if layer.bias is None else layer.bias.detach()
    inputs = layer.weight[0].numel()
    if available() is not None or geometry.groups != 1 or inputs > MOST_INPUTS:
        return PackedConv(weight_of(layer.weight), bias, geometry)
    if fits(layer) and by_tiles(layer.weight.shape, tiled):
        return Tiled(layer.weight, bias)
    return Matrix(weight_of(layer.weight), bias)


def by_tiles(shape: Sequence[int], tiled: int) -> bool:
    """Whether the kernels in C++ take a weight that fits by Winograd's tiles, with 16 bytes of each 9 instead of 9."""
    return math.prod(shape[1:]) >= LEAST_INPUTS and math.prod(shape) <= tiled


def int8(layer: nn.Module, *, tiled: int = 0) -> nn.Module | None:
    """The layer in 8 bits; None if there is no such form of it. `tiled`: see `pipelines/converts/int8.py`."""
    found = packable(layer)
    if found is None:
        return None
    return Int8Linear(found) if isinstance(found, nn.Linear) else Int8Conv2d(found, tiled)


def untold(layer: nn.Module) -> int:
    """Bytes of weights that are in no tensor of a layer: those in oneDNN's order."""
    packed = isinstance(layer, Int8Linear | Int8Conv2d) and isinstance(
        layer.product, PackedLinear | PackedConv
    )
    return layer.product.nbytes if packed else 0
