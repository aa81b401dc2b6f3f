"""minifloat: for each layer the best of the small float and whole-number formats of as many bits.

Paper: arXiv:2311.12359 (low-precision minifloats); OCP Microscaling Formats 1.0
Shapes: any linear layer or 2D convolution, in any precision on any device
Units and ranges: bits 8, 6 or 4 per weight without scales; smallest 0 and up, weights of a layer
Cost: at load, one round through each format; then as weight-only
Neutral: smallest above every layer
Errors: ValueError for other bits
Differs: weights alone are rounded; formats are chosen by squared error of the weights, or of the products with inputs
    seen in calibration
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.quant.formats import NAMED
from ...kernels.quant.packed import Layer, matrix
from ._calibration import Seen
from ._layers import ENDS
from ._packing import SMALLEST, check_smallest, pack_layer, pack_layers, seen_rows

_CHOICE = {8: ("e4m3", "e5m2", "int8"), 6: ("e3m2", "e2m3", "int6"), 4: ("e2m1", "nf4", "int4")}


@dataclass(frozen=True)
class Minifloat:
    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[str] = "bits"

    bits: int = 8
    """Per weight: 8, 6 or 4."""
    smallest: int = SMALLEST
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""
    seen: Seen | None = None
    """What the layers are given; by it errors of products are compared instead of errors of weights."""

    def __post_init__(self) -> None:
        check_smallest(self.smallest)
        if self.bits not in _CHOICE:
            raise ValueError(f"bits must be 8, 6 or 4, got {self.bits}")

    def __call__(self, net: nn.Module) -> nn.Module:
        return pack_layers(net, self._best, skip=self.skip, smallest=self.smallest)

    def _best(self, name: str, layer: Layer) -> nn.Module:
        w, rows = matrix(layer), seen_rows(self.seen, name)

        def loss(title: str) -> float:
            form = NAMED[title]
            off = form.unpack(form.pack(w), w.shape[1]) - w
            return float((off if rows is None else rows @ off.T).square().sum())

        return pack_layer(layer, NAMED[min(_CHOICE[self.bits], key=loss)], w)
