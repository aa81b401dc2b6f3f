"""Packed linear layers on CUDA: which of Triton's products serves a layer, so that its weight is never unpacked.

Activations that a layer rounds to 8 bits have a scale per token here, which is finer than the one per picture that the
layer states. Without Triton, and for other formats, layers unpack as they run.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ..triton_here import lacking
from .activations import Activation
from .formats import Format
from .integers import DualGrained, Grouped, PerChannel
from .products import HALVES


class Layer(Protocol):
    """What is asked of a packed layer."""

    form: Format
    activation: Activation | None
    bias: nn.Parameter | None

    def tensors(self) -> dict[str, Tensor]: ...

    def held(self, name: str) -> Tensor | None: ...


def usable(x: Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype in HALVES and lacking() is None


def product(layer: Layer, x: Tensor) -> Tensor | None:
    """x [...,I] -> [...,O] with bias, and with the low-rank branch if `fuses`; None if no kernel serves the layer."""
    if not usable(x) or layer.held("outlier_values") is not None:
        return None
    form, tensors = layer.form, layer.tensors()
    if isinstance(form, Grouped) and form.bits == 4 and layer.activation is None:
        from ..triton.four_bit import w4a16

        zero = tensors.get("weight_zero")
        return w4a16(x, tensors["weight"], tensors["weight_scale"], zero, layer.bias, group=form.group)
    if not _by_token(layer.activation):
        return None
    if isinstance(form, PerChannel):
        from ..triton.rows import quantised
        from ..triton.scaled_product import product as scaled

        rows, scales = quantised(x), tensors["weight_scale"]
        return scaled(rows.stored, tensors["weight"], (rows.scale, scales), layer.bias, dtype=x.dtype)
    if isinstance(form, DualGrained):
        from ..triton.four_bit import w4a8
        from ..triton.rows import quantised

        weight = (tensors["weight"], tensors["weight_scale"], tensors["weight_scale_2"])
        branch = None
        if fuses(layer, x):
            branch = (x @ tensors["low_down"].to(x.dtype).T, tensors["low_up"].to(x.dtype))
        return w4a8(quantised(x), weight, layer.bias, branch=branch, group=form.group, dtype=x.dtype)
    return None


def fuses(layer: Layer, x: Tensor) -> bool:
    """Whether `product` adds the low-rank branch itself: it must see the input that the branch sees."""
    whole = layer.held("outlier_values") is None and layer.held("input_noise") is None
    dual = isinstance(layer.form, DualGrained) and _by_token(layer.activation)
    return whole and dual and layer.held("low_up") is not None and usable(x)


def _by_token(activation: Activation | None) -> bool:
    """Whether it rounds to 8 bits by what it sees."""
    return activation is not None and activation == Activation(8)
