"""What converts to packed weights share: which layers, and a layer made of a matrix and what lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...kernels.quant.activations import Activation
from ...kernels.quant.formats import Format
from ...kernels.quant.integers import Grouped, PerChannel
from ...kernels.quant.packed import Layer, packable, packed, rounds
from ...kernels.steady import steady
from ._calibration import Seen
from ._layers import chosen, exchange

SMALLEST = 4096
"""Weights that a layer must have by default: below, scales and calls cost more than is saved."""

Make = Callable[[str, Layer], nn.Module | None]
"""(dotted name, layer) -> its packed form; None leaves it."""


def pack_layers(net: nn.Module, make: Make, *, skip: Sequence[str], smallest: int) -> nn.Module:
    """The network, its linear layers and convolutions packed one by one, so that one alone is held in both forms."""
    with torch.no_grad():
        for name, layer in chosen(net, skip=skip, smallest=smallest):
            found = packable(layer)
            new = None if found is None else make(name, found)
            if new is not None:
                exchange(net, name, new)
    return steady(net) if rounds(net) else net


def pack_layer(
    layer: Layer,
    form: Format,
    weight: Tensor,
    beside: Mapping[str, Tensor] | None = None,
    activation: Activation | None = None,
) -> nn.Module:
    """The layer with this matrix [O,N] in a format; what lies beside it is kept in the layer's own precision."""
    return pack_tensors(layer, form, form.pack(weight), beside, activation)


def pack_tensors(
    layer: Layer,
    form: Format,
    tensors: Mapping[str, Tensor],
    beside: Mapping[str, Tensor] | None = None,
    activation: Activation | None = None,
) -> nn.Module:
    """The same of a matrix that is packed already."""
    kept = {
        name: tensor.to(layer.weight.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in (beside or {}).items()
    }
    return packed(layer, form, {**tensors, **kept}, activation)


def whole_numbers(bits: int, group: int) -> PerChannel | Grouped:
    """8 bits per channel; fewer in groups."""
    return PerChannel() if bits == 8 else Grouped(bits, group)


def channels_in(layer: Layer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def spread(values: Tensor, weight: Tensor) -> Tensor:
    """Numbers per input channel [I], one for each column of a matrix [O,N]."""
    return values.repeat_interleave(weight.shape[1] // len(values))


def check_smallest(smallest: int) -> None:
    if smallest < 0:
        raise ValueError(f"smallest must be 0 or more, got {smallest}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low:g}..{high:g}, got {value:g}")


def rounded_rows(layer: Layer, activation: Activation, rows: Tensor) -> Tensor:
    """Rows [R,N] of a layer's matrix product, rounded as its input would be; all of them count as one picture."""
    x = rows.view(len(rows), channels_in(layer), -1)
    if activation.group:
        return activation(x, 1).flatten(1)
    return activation(x[None], 2)[0].flatten(1)


def seen_rows(seen: Seen | None, name: str) -> Tensor | None:
    """Inputs [R,N] that a layer was given, float32; None if nobody has looked, or its rows are of several groups."""
    found = None if seen is None else seen.layers.get(name)
    return None if found is None or found.rows.shape[1] < 2 else found.rows.float()
