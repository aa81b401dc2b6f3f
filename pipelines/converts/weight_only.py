"""weight-only: weights packed in one format, unpacked layer by layer as the network runs (alias marlin:format=int4).

Paper: arXiv:2305.14314, section 3 (NF4, scales of scales); OCP Microscaling Formats 1.0 for the minifloats;
    arXiv:2408.11743 (MARLIN) for products with 4-bit groups
Shapes: any linear layer or 2D convolution, in any precision on any device
Units and ranges: smallest 0 and up, weights of a layer
Cost: unpacking each layer's weight at each call; memory of the layers falls to bits / 32 or bits / 16
Neutral: smallest above every layer
Errors: ValueError for a format that is not known
Differs: nothing is trained; scales of scales are one number to 256, without a mean. marlin is the format int4, whose
    linear layers multiply without unpacking on CUDA, by a kernel in Triton of our own instead of the paper's
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.quant.formats import NAMED
from ...kernels.quant.packed import Layer, matrix
from ._layers import ENDS
from ._packing import SMALLEST, check_smallest, pack_layer, pack_layers


@dataclass(frozen=True)
class WeightOnly:
    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[str] = "format"

    format: str = "nf4"
    """int8, int2..int6, int4-asym, w4a8, nf4, or a minifloat: e4m3, e5m2, e3m2, e2m3, e2m1."""
    smallest: int = SMALLEST
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""

    def __post_init__(self) -> None:
        check_smallest(self.smallest)
        if self.format not in NAMED:
            raise ValueError(f"format must be one of {', '.join(NAMED)}, got {self.format}")

    def __call__(self, net: nn.Module) -> nn.Module:
        form = NAMED[self.format]

        def make(name: str, layer: Layer) -> nn.Module:
            return pack_layer(layer, form, matrix(layer))

        return pack_layers(net, make, skip=self.skip, smallest=self.smallest)
