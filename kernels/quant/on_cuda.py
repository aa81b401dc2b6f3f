"""Packed linear layers on CUDA: which of Triton's products serves a layer, so that its weight is never unpacked.

Activations that a layer rounds to 8 bits have a scale per token here, which is finer than the one per picture that the
layer states. Without Triton, and for other formats, layers unpack as they run.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..triton_here import lacking
from . import operators
from .activations import Activation
from .by_row import rounded
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
        zero = tensors.get("weight_zero")
        return operators.w4a16(x, tensors["weight"], tensors["weight_scale"], zero, layer.bias, form.group)
    if not _by_token(layer.activation):
        return None
    if isinstance(form, PerChannel):
        rows, scale = rounded(x, torch.int8, True), tensors["weight_scale"].float()
        return operators.by_row(rows.stored, tensors["weight"], (rows.scale, scale), layer.bias, x.dtype)
    if isinstance(form, DualGrained):
        weight = (tensors["weight"], tensors["weight_scale"], tensors["weight_scale_2"])
        branch = None
        if fuses(layer, x):
            branch = (F.linear(x, tensors["low_down"].to(x.dtype)), tensors["low_up"].to(x.dtype))
        return operators.w4a8(x, weight, layer.bias, branch, form.group)
    return None


def fuses(layer: Layer, x: Tensor) -> bool:
    """Whether `product` adds the low-rank branch itself: it must see the input that the branch sees."""
    whole = layer.held("outlier_values") is None and layer.held("input_noise") is None
    dual = isinstance(layer.form, DualGrained) and _by_token(layer.activation)
    return whole and dual and layer.held("low_up") is not None and usable(x)


def _by_token(activation: Activation | None) -> bool:
    """Whether it rounds to 8 bits by what it sees."""
    return activation is not None and activation == Activation(8)
