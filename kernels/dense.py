"""Linear layers and 1 x 1 convolutions in float32 in C++, with what stands around them: bias, gate, gain, sum.

The result is torch's up to the order of sums. The weights are read in an order of their own, of which there is no copy.
Where inputs are many they are summed in parts, so that the weights of a part stay in a core's cache.
"""

from __future__ import annotations

import ctypes
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .foretold import tell
from .native.around import GATES, PLAIN, After, Norm, at, checked, done, float32, functions, normed, room
from .native.products import LayerNorm, Linear, Product

PANEL = 16
"""Outputs that lie side by side, as in products.cpp."""
MOST, LEAST = 1024, 128
"""Inputs of a part."""


class DenseMatrix(nn.Module):
    """A weight [O,I] and its bias [O]."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        panels = -(-self.outputs // PANEL)
        packed = torch.zeros(panels, self.inputs, PANEL)
        for first in range(0, self.outputs, PANEL):
            part = weight.detach()[first : first + PANEL].float()
            packed[first // PANEL, :, : len(part)] = part.T
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        self.parts = next((n for n in range(1, self.inputs // LEAST + 1) if _fits(self.inputs, n)), 1)

    def rows(self, x: Tensor, norm: LayerNorm | None = None) -> Tensor:
        """x [M,I] after the norm, [M,1,1,I]."""
        return (x if norm is None else layer_normed(x, norm)).contiguous().view(len(x), 1, 1, -1)

    def pictures(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        """x [B,I,H,W] after the norm, [B,H,W,I]."""
        return (x if norm is None else normed(x, norm)).permute(0, 2, 3, 1).contiguous()

    def forward(self, x: Tensor, *, after: After = PLAIN, out: Tensor | None = None) -> Tensor:
        """x [B,H,W,I] -> [B,H,W,O] (in `out`), or half the O with `after.halves`."""
        pictures, height, width, inputs = float32(x).shape
        wanted = [pictures, height, width, self.outputs // 2 if after.halves else self.outputs]
        shift, gain, residual = checked(after, wanted)
        out = room(x, wanted, after, residual) if out is None else out.view(wanted)
        places = pictures * height * width
        if out.is_meta:
            tell("dense", 2.0 * places * inputs * self.outputs, 8 * places)
            return out
        given = Product(
            *(at(t) for t in (x, self.packed, None, self.bias, None)),
            *(at(t) for t in (None, None, shift, gain, residual, out)),
            *(pictures, height * width, self.parts, inputs // self.parts, self.outputs),
            *(height * width, 1, 1, self.parts, 1, self.parts, 1, 1),
            *(GATES.index(after.gate), int(after.halves), 1 if gain is None else places // len(gain)),
            *(after.factor, torch.get_num_threads()),
        )
        done(functions().sfumato_product_float(ctypes.byref(given)))
        return out


def _fits(inputs: int, parts: int) -> bool:
    return inputs % parts == 0 and inputs // parts <= MOST


class DenseLinear(Linear):
    """x [...,I] float32 -> [...,O] float32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.product = DenseMatrix(layer.weight, layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.after(input)


class DenseConv2d(nn.Module):
    """x [B,I,H,W] float32 -> [B,O,H,W] float32, channels last; 1 x 1 alone."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.product = DenseMatrix(layer.weight.flatten(1), layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x)

    def after(self, x: Tensor, after: After = PLAIN) -> Tensor:
        """With something done to the product; the residual is [B,H,W,O]."""
        return cast("Tensor", self.product(self.product.pictures(x), after=after)).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


def dense(layer: nn.Module) -> nn.Module | None:
    """The layer in C++; None if there is no such form of it."""
    if isinstance(layer, nn.Linear):
        return DenseLinear(layer)
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        own = (layer.stride, layer.padding, layer.groups)
        return DenseConv2d(layer) if own == ((1, 1), (0, 0), 1) else None
    return None


def layer_normed(x: Tensor, norm: LayerNorm) -> Tensor:
    """Reference of a norm: x [M,I], an equal share of the rows with each factor and shift."""
    groups = next((len(t) for t in (norm.factor, norm.shift) if t is not None), 1)
    if groups == 1:
        factor, shift = (None if t is None else t[0] for t in (norm.factor, norm.shift))
        return F.layer_norm(x, x.shape[1:], factor, shift, norm.eps)
    shares = F.layer_norm(x, x.shape[1:], None, None, norm.eps).view(groups, -1, x.shape[1])
    if norm.factor is not None:
        shares = shares * norm.factor[:, None]
    return (shares if norm.shift is None else shares + norm.shift[:, None]).view(x.shape)
