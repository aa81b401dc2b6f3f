"""lorc: what rounding takes from a weight, given back as far as a low-rank matrix can.

Paper: arXiv:2303.08302 (ZeroQuant-V2), section 5
Shapes: any linear layer or 2D convolution without groups, in any precision on any device
Units and ranges: bits 2..8; group 8 and up in steps of 8; rank 0 and up; smallest 0 and up, weights of a layer
Cost: two thin products per layer and call; rank * (in + out) numbers beside each weight
Neutral: smallest above every layer; rank = 0 is plain rounding
Errors: ValueError outside these ranges
Differs: the two factors stay in the network's own precision instead of 8 bits
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.quant.packed import Layer, matrix
from ...kernels.quant.stored import low_rank
from ._layers import ENDS
from ._packing import (
    SMALLEST,
    check_range,
    check_smallest,
    pack_layer,
    pack_layers,
    whole_numbers,
)


@dataclass(frozen=True)
class Lorc:
    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[str] = "bits"

    bits: int = 4
    """Per weight, 2..8."""
    rank: int = 16
    """Of the correction, 0 and up."""
    group: int = 64
    """Weights that share a scale, a multiple of 8; 8 bits have one per channel."""
    smallest: int = SMALLEST
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""

    def __post_init__(self) -> None:
        check_smallest(self.smallest)
        check_range("rank", self.rank, 0, 4096)
        whole_numbers(self.bits, self.group)

    def __call__(self, net: nn.Module) -> nn.Module:
        return pack_layers(net, self._corrected, skip=self.skip, smallest=self.smallest)

    def _corrected(self, name: str, layer: Layer) -> nn.Module:
        form, w = whole_numbers(self.bits, self.group), matrix(layer)
        grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
        if self.rank == 0 or grouped:
            return pack_layer(layer, form, w)
        lost = w - form.unpack(form.pack(w), w.shape[1])
        down, up = low_rank(lost, self.rank)
        return pack_layer(layer, form, w, {"low_down": down, "low_up": up})
