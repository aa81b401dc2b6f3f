"""Linear layers and convolutions in 8 bits on processors, through oneDNN's kernels in torch.

Weights are symmetric with one scale per output channel. Activations are unsigned with a scale and zero point per
picture of the batch, measured at each call, or one that is given; so a picture comes out the same in any batch. oneDNN
sums in 32 bits and gives float32, so the error is that of rounding alone. The operators are torch's own but internal:
`available` tries them once against the reference, and whoever needs them says what is lost without.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..foretold import tell
from ..native.around import graphless

LEVELS = 255
AT_ONCE = 1 << 20
"""Weights that are rounded at a time."""
TOLERANCE = 1e-3
"""Relative; both sides hold the same integers and differ in the order of float32 sums."""


class Scale(NamedTuple):
    """real = scale * (stored - zero), stored in 0..255."""

    scale: float
    zero: int


class Weight(NamedTuple):
    """real [O,...] = scale [O] * stored int8 [O,...]."""

    stored: Tensor
    scale: Tensor


class Geometry(NamedTuple):
    """Of a convolution."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def geometry_of(layer: nn.Conv2d) -> Geometry:
    """Of a convolution whose padding is told in numbers."""
    pairs = (layer.stride, layer.padding, layer.dilation)
    stride, padding, dilation = (cast("tuple[int, int]", pair) for pair in pairs)
    return Geometry(stride, padding, dilation, layer.groups)


def weight_of(weight: Tensor) -> Weight:
    """Rounded to -127..127 with one scale per output channel; a channel of zeros has the scale 1."""
    flat = weight.detach().flatten(1)
    stored, scale = torch.empty_like(flat, dtype=torch.int8), torch.empty(len(flat))
    each = max(1, AT_ONCE // max(1, flat.shape[1]))
    for first in range(0, len(flat), each):  # what lies between takes several times the weight's memory
        rows, part = flat[first : first + each].float(), slice(first, first + each)
        most = rows.abs().amax(1) / 127
        scale[part] = torch.where(most > 0, most, torch.ones_like(most))
        stored[part] = (rows / scale[part, None]).round()
    return Weight(stored.view(weight.shape), scale)


def scale_of(low: float, high: float) -> Scale:
    """The finest scale whose range holds low..high and 0, which padding needs exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return Scale(1.0, 0)
    scale = (high - low) / LEVELS
    return Scale(scale, min(max(round(-low / scale), 0), LEVELS))


def measured(x: Tensor) -> Scale:
    """The scale of this very tensor. Reads two numbers of it."""
    low, high = torch.aminmax(x)
    return scale_of(float(low), float(high))


def quantised(x: Tensor, scale: Scale) -> Tensor:
    """x as uint8, in its own memory format."""
    return torch.quantize_per_tensor(x, scale.scale, scale.zero, torch.quint8).int_repr()


class PackedLinear:
    """A weight [O,I] and bias [O] in oneDNN's order; inputs go by a known scale, or each of the B has its own."""

    def __init__(self, weight: Weight, bias: Tensor | None, known: Scale | None = None) -> None:
        self.known = known
        self.scale, self.zero = weight.scale, torch.zeros(len(weight.scale), dtype=torch.int64)
        self.packed = torch.ops.onednn.qlinear_prepack(weight.stored, None)
        self.bias, self.nbytes = bias, weight.stored.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [B,...,I] float32 -> [B,...,O] float32."""
        graphless(x)
        if self.known is None and len(x) > 1:
            return torch.cat([self(row) for row in x.split(1)])
        if x.is_meta:
            tell("bytewise", 2.0 * x.numel() * len(self.scale), 2 * x.numel())
            return x.new_empty(*x.shape[:-1], len(self.scale))
        scale = self.known or measured(x)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(quantised(x, scale), scale.scale, scale.zero),
            *(self.packed, self.scale, self.zero, self.bias),
            *(1.0, 0, torch.float32),
            *("none", [], ""),
        )
        return out


class PackedConv:
    """A weight [O,I/groups,kh,kw] and bias [O] in oneDNN's order; scales of inputs as above."""

    def __init__(
        self, weight: Weight, bias: Tensor | None, geometry: Geometry, known: Scale | None = None
    ) -> None:
        self.known = known
        self.scale, self.zero = weight.scale, torch.zeros(len(weight.scale), dtype=torch.int64)
        self.bias, self.geometry = bias, geometry
        self.shape, self.nbytes = weight.stored.shape, weight.stored.nbytes
        stride, padding, dilation, groups = geometry
        self.packed = torch.ops.onednn.qconv_prepack(
            weight.stored, self.scale, 1.0, 0, stride, padding, dilation, groups, None
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x [B,I,H,W] float32 -> [B,O,h,w] float32, channels last."""
        x = graphless(x).contiguous(memory_format=torch.channels_last)
        if self.known is None and len(x) > 1:
            return torch.cat([self(image) for image in x.split(1)])
        stride, padding, dilation, groups = self.geometry
        if x.is_meta:
            size = (
                (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, p, d, k, s in zip(x.shape[2:], padding, dilation, self.shape[2:], stride, strict=True)
            )
            shaped = x.new_empty(len(x), *size, self.shape[0]).permute(0, 3, 1, 2)
            tell("bytewise", 2.0 * shaped.numel() * self.shape[1:].numel(), 2 * x.numel())
            return shaped
        scale = self.known or measured(x)
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *(quantised(x, scale), scale.scale, scale.zero),
            *(self.packed, self.scale, self.zero, self.bias),
            *(stride, padding, dilation, groups),
            *(1.0, 0, torch.float32),
            *("none", [], ""),
        )
        return out


def rounded(x: Tensor, scale: Scale | None = None) -> Tensor:
    """Reference: x [B,...] as float32 after a round through 8 bits."""
    if scale is None and len(x) > 1:
        return torch.cat([rounded(row) for row in x.split(1)])
    scale = scale or measured(x)
    stored = (x / scale.scale + scale.zero).round().clamp(0, LEVELS)
    return (stored - scale.zero) * scale.scale


def restored(weight: Weight) -> Tensor:
    """Reference: the weight as float32."""
    return weight.stored.float() * weight.scale.view(-1, *[1] * (weight.stored.ndim - 1))


def linear(x: Tensor, weight: Weight, bias: Tensor | None, scale: Scale | None = None) -> Tensor:
    """Reference of `PackedLinear`."""
    return F.linear(rounded(x, scale), restored(weight), bias)


def conv(
    x: Tensor, weight: Weight, bias: Tensor | None, geometry: Geometry, scale: Scale | None = None
) -> Tensor:
    """Reference of `PackedConv`."""
    return F.conv2d(rounded(x, scale), restored(weight), bias, *geometry)


@cache
def available() -> str | None:
    """None where torch has the operators and they compute what the reference does; else what is wrong."""
    x, w, b = (
        torch.linspace(-1, 2, 192).view(1, 3, 8, 8),
        torch.linspace(-1, 1, 108).view(4, 3, 3, 3),
        torch.ones(4),
    )
    geometry, weight, flat = Geometry((1, 1), (1, 1), (1, 1), 1), weight_of(w), weight_of(w.flatten(1))
    rows = x.view(-1, 3)[:27].reshape(3, 27)
    try:
        with (
            warnings.catch_warnings()
        ):  # of an operator that may go one day, told once; this test would notice
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            quantised(x, measured(x))
        pairs = (
            (PackedConv(weight, b, geometry)(x), conv(x, weight, b, geometry)),
            (PackedLinear(flat, b)(rows), linear(rows, flat, b)),
        )
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"torch {torch.__version__} has no 8-bit kernels for this processor ({str(error)[:120]})"
    for ours, wanted in pairs:
        if not torch.allclose(ours, wanted, rtol=TOLERANCE, atol=TOLERANCE * float(wanted.abs().max())):
            return f"torch {torch.__version__} computes otherwise in 8 bits than its reference"
    return None
