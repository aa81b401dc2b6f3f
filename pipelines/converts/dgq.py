"""dgq: weights in 4 bits, activations in 8, and products in 8 bits.

Paper: arXiv:2310.04836 (Dual Grained Quantization), section 3.1
Shapes: any linear layer or 2D convolution; products in 8 bits where the network is in float32 on a processor
Units and ranges: group 8 and up in steps of 8, weights that share a scale; smallest 0 and up, weights of a layer
Cost: one pass over each layer's input; a layer's 8-bit form is made at its first call and kept, so weights take 4 bits
    per weight in a checkpoint and 12 while running
Neutral: smallest above every layer
Errors: ValueError for a group that is no multiple of 8
Differs: whole scales of groups are the better of the two about a group's own, without the grid search; activations are
    measured at each call, per picture; elsewhere than in float32 on a processor the same rounding is computed in floats
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.quant.activations import Activation
from ...kernels.quant.integers import DualGrained
from ...kernels.quant.packed import Layer, matrix
from ._layers import ENDS
from ._packing import SMALLEST, check_smallest, pack_layer, pack_layers


@dataclass(frozen=True)
class Dgq:
    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[int] = 4

    group: int = 64
    """Weights that share a scale, a multiple of 8."""
    smallest: int = SMALLEST
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""

    def __post_init__(self) -> None:
        check_smallest(self.smallest)
        DualGrained(self.group)

    def __call__(self, net: nn.Module) -> nn.Module:
        form = DualGrained(self.group)

        def make(name: str, layer: Layer) -> nn.Module:
            return pack_layer(layer, form, matrix(layer), activation=Activation(8))

        return pack_layers(net, make, skip=self.skip, smallest=self.smallest)
