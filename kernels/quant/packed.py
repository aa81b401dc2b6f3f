"""Linear layers and convolutions that keep packed weights and unpack them as they run; any precision, any device.

Beside the weight a layer may hold: a scale per input channel that was moved into the weight (`pre_quant_scale`), a
low-rank branch in full precision (`low_down`, `low_up`), single weights in full precision (`outlier_*`), a fixed noise
added before its input is rounded and taken off after (`input_noise`, `noise_output`), and a first token that is always
the same, with what the full layer makes of it (`first_input`, `first_output`). What is there is named by its tensors,
so the layer's own state dict is all that a checkpoint needs beside a few numbers. Where the format has an exact form in
8 bits, and the input is rounded to as many, products are in 8 bits on a processor, in float32; the weight is then held
in the kernel's order too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..steady import one_by_one
from . import on_cuda
from .activations import Activation
from .bytewise import Bytewise
from .formats import Format, size_of, spec_of
from .int8 import Scale, Weight, available, geometry_of
from .integers import DualGrained, PerChannel

Layer: TypeAlias = "nn.Linear | nn.Conv2d"


class _Packed(nn.Module):
    """What both kinds share. `rows` and `count` are those of the weight as a matrix."""

    form: Format
    activation: Activation | None
    rows: int
    count: int
    weight: nn.Parameter
    bias: nn.Parameter | None

    def _hold(
        self, layer: Layer, form: Format, tensors: Mapping[str, Tensor], activation: Activation | None
    ) -> None:
        self.rows, self.count = matrix_shape(layer)
        self.form, self.activation = form, activation
        codes = tensors["weight"].flatten(1)
        # as many axes as a plain weight has: adapters ask for that
        codes = codes.view(*codes.shape, *[1] * (layer.weight.ndim - 2))
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        for name, tensor in tensors.items():
            if name != "weight":
                self.register_buffer(name, tensor)
        self._product: Bytewise | None = None

    def held(self, name: str) -> Tensor | None:
        return self._buffers.get(name)

    def tensors(self) -> dict[str, Tensor]:
        """All but the bias."""
        found = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        return {"weight": self.weight.detach().flatten(1), **found}

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [O,N] that the layer stands for, without its low-rank branch."""
        w = self.form.unpack(self.tensors(), self.count)
        values = self.held("outlier_values")
        if values is not None:
            ends, columns = self._buffers["outlier_rows"], self._buffers["outlier_columns"]
            assert ends is not None and columns is not None
            rows = torch.arange(self.rows, device=w.device).repeat_interleave(ends.diff())
            w[rows, columns.long()] = values.float()
        return w.to(dtype)

    def spec(self) -> dict[str, Any]:
        """Plain values: with the tensors, all it takes to make the layer again."""
        found = spec_of(self.form)
        return found if self.activation is None else {**found, "activation": self.activation.spec()}

    def bytewise(self) -> Bytewise | None:
        """Its product in 8 bits, where the format and the rounding of inputs have one, on a processor."""
        if self._product is None and self.activation is not None:
            self._product = self.widened()
        return self._product

    def widened(self) -> Bytewise | None:
        """The same, made anew; an input that is not rounded so far is then rounded to 8 bits as it comes."""
        a = Activation(8) if self.activation is None else self.activation
        weight = self.form.widened(self.tensors(), self.count) if self.fits_bytes(a) else None
        return None if weight is None else self._multiplied(weight, a.scale)

    def fits_bytes(self, a: Activation | None) -> bool:
        """Whether there is such a product for inputs that are rounded so. Reads no weights, which may be away."""
        if a is None or a.bits != 8 or a.group or self.held("outlier_values") is not None:
            return False
        return isinstance(self.form, PerChannel | DualGrained) and available() is None

    def bare(self) -> bool:
        """Whether nothing lies beside the weight."""
        return set(self._buffers) <= set(self.form.shapes(1, 1))

    def _multiplied(self, weight: Weight, known: Scale | None) -> Bytewise:
        raise TypeError(f"{type(self).__name__} has no product")

    def forward(self, input: Tensor) -> Tensor:
        x, axis = input, 1 if isinstance(self, nn.Conv2d) else -1
        first, made = self.held("first_input"), self.held("first_output")
        smooth, noise, shift = (
            self.held(name) for name in ("pre_quant_scale", "input_noise", "noise_output")
        )
        if first is not None:
            x = torch.cat([x[..., :1, :] - first.to(x.dtype), x[..., 1:, :]], -2)
        if smooth is not None:
            x = x / _along(smooth, axis, x)
        out = self.product(x if noise is None else x + _along(noise, axis, x))
        if shift is not None:
            out = out - shift.to(out.dtype)
        if self.held("low_up") is not None and not (isinstance(self, nn.Linear) and on_cuda.fuses(self, x)):
            out = out + self.branch(x)
        if made is not None:
            out = torch.cat([out[..., :1, :] + made.to(out.dtype), out[..., 1:, :]], -2)
        return out

    def product(self, x: Tensor) -> Tensor:
        """With the packed weight and the bias."""
        raise TypeError(f"{type(self).__name__} has no product")

    def branch(self, x: Tensor) -> Tensor:
        """Through the low-rank branch."""
        raise TypeError(f"{type(self).__name__} has no branch")

    def extra_repr(self) -> str:
        beside = sorted(set(self._buffers) - set(self.form.shapes(1, 1)))
        return ", ".join([f"{self.rows}x{self.count}", str(self.form), str(self.activation), *beside])


class QuantLinear(_Packed, nn.Linear):
    """x [...,I] -> [...,O]."""

    def __init__(
        self, layer: nn.Linear, form: Format, tensors: Mapping[str, Tensor], activation: Activation | None
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a dense weight first
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._hold(layer, form, tensors, activation)

    def product(self, x: Tensor) -> Tensor:
        if (out := on_cuda.product(self, x)) is not None:
            return out
        if _on_processor(x) and (bytewise := self.bytewise()) is not None:
            return bytewise(x)
        weight = self.dense(x.dtype)
        if self.activation is None:
            return F.linear(x, weight, self.bias)
        return one_by_one(lambda x: F.linear(x, weight, self.bias), self.activation(x, -1))

    def _multiplied(self, weight: Weight, known: Scale | None) -> Bytewise:
        return Bytewise(weight, self.bias, None, known)

    def branch(self, x: Tensor) -> Tensor:
        down, up = self._buffers["low_down"], self._buffers["low_up"]
        assert down is not None and up is not None
        down, up = down.to(x.dtype), up.to(x.dtype)
        return one_by_one(lambda x: F.linear(F.linear(x, down), up), x)


class QuantConv2d(_Packed, nn.Conv2d):
    """x [B,I,H,W] -> [B,O,h,w]."""

    def __init__(
        self, layer: nn.Conv2d, form: Format, tensors: Mapping[str, Tensor], activation: Activation | None
    ) -> None:
        nn.Module.__init__(self)  # nn.Conv2d's own would make a dense weight first
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.groups = layer.kernel_size, layer.groups
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.padding_mode, self.transposed, self.output_padding = "zeros", False, (0, 0)
        self._hold(layer, form, tensors, activation)

    def product(self, x: Tensor) -> Tensor:
        if _on_processor(x) and (bytewise := self.bytewise()) is not None:
            return bytewise(x)
        weight, geometry = self.dense(x.dtype).view(self._shape()), geometry_of(self)
        if self.activation is None:
            return F.conv2d(x, weight, self.bias, *geometry)
        return one_by_one(lambda x: F.conv2d(x, weight, self.bias, *geometry), self.activation(x, 1))

    def _shape(self) -> tuple[int, ...]:
        return (self.rows, self.in_channels // self.groups, *self.kernel_size)

    def _multiplied(self, weight: Weight, known: Scale | None) -> Bytewise:
        shaped = Weight(weight.stored.reshape(self._shape()), weight.scale)
        return Bytewise(shaped, self.bias, geometry_of(self), known)

    def branch(self, x: Tensor) -> Tensor:
        down, up = self._buffers["low_down"], self._buffers["low_up"]
        assert down is not None and up is not None
        down = down.to(x.dtype).view(len(down), self.in_channels, *self.kernel_size)
        up, geometry = up.to(x.dtype)[:, :, None, None], geometry_of(self)
        return one_by_one(lambda x: F.conv2d(F.conv2d(x, down, None, *geometry), up), x)


def _on_processor(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _along(values: Tensor, axis: int, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 2)) if axis == 1 else values.to(x.dtype)


def matrix_shape(layer: Layer) -> tuple[int, int]:
    """Output channels, and weights of each."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels // layer.groups * math.prod(layer.kernel_size)


def packable(layer: nn.Module) -> Layer | None:
    """The layer, if there is a packed form of it and it has none yet."""
    if isinstance(layer, _Packed):
        return None
    if isinstance(layer, nn.Linear):
        return layer
    plain = (
        isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)
    )
    return layer if plain and isinstance(layer, nn.Conv2d) else None


def rounds(net: nn.Module) -> bool:
    """Whether some packed layers round their inputs."""
    return any(isinstance(layer, _Packed) and layer.activation is not None for layer in net.modules())


def packed(
    layer: Layer, form: Format, tensors: Mapping[str, Tensor], activation: Activation | None = None
) -> QuantLinear | QuantConv2d:
    """A layer of the same shape and bias, with these tensors for its weight."""
    kind = QuantLinear if isinstance(layer, nn.Linear) else QuantConv2d
    made: QuantLinear | QuantConv2d = kind(layer, form, tensors, activation)
    return made


def matrix(layer: Layer) -> Tensor:
    """The weight [O,N], float32."""
    return layer.weight.detach().float().flatten(1)


def layer_size(layer: Layer, form: Format) -> int:
    """Bytes of the packed weight."""
    return size_of(form, *matrix_shape(layer))
