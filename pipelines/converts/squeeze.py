"""squeeze: a table of values of its own for each output channel, and the weights that no table holds, apart.

Paper: arXiv:2306.07629 (SqueezeLLM), sections 4.1 and 4.2
Shapes: any linear layer or 2D convolution, in any precision on any device
Units and ranges: bits 2..6; outliers and sensitive 0..0.05, shares of the weights; smallest 0 and up
Cost: at load, twenty rounds of k-means per layer; then as weight-only. 2**bits numbers per channel and 6 or 8 bytes per
    outlier beside the codes
Neutral: smallest above every layer
Errors: ValueError outside these ranges
Differs: how much a weight counts is the mean square of its input as seen in calibration, not of its gradient, and the
    same for all without calibration
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...kernels.quant.codebook import Codebook
from ...kernels.quant.packed import Layer, matrix, packed
from ._calibration import Seen
from ._layers import ENDS
from ._packing import SMALLEST, check_range, check_smallest, pack_layers, seen_rows


@dataclass(frozen=True)
class Squeeze:
    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[str] = "bits"

    bits: int = 4
    """Per code, 2..6."""
    outliers: float = 0.0045
    """Share of the weights kept apart for their size, 0..0.05."""
    sensitive: float = 0.0005
    """Share of the weights kept apart because most hangs on them, 0..0.05."""
    smallest: int = SMALLEST
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""
    seen: Seen | None = None
    """What the layers are given; without it all weights count the same."""

    def __post_init__(self) -> None:
        check_smallest(self.smallest)
        check_range("outliers", self.outliers, 0, 0.05)
        check_range("sensitive", self.sensitive, 0, 0.05)
        Codebook(self.bits)

    def __call__(self, net: nn.Module) -> nn.Module:
        return pack_layers(net, self._dense_and_sparse, skip=self.skip, smallest=self.smallest)

    def _dense_and_sparse(self, name: str, layer: Layer) -> nn.Module:
        w, rows = matrix(layer), seen_rows(self.seen, name)
        counts = torch.ones_like(w) if rows is None else rows.square().mean(0).expand_as(w)
        apart = _greatest(w.abs(), self.outliers) | _greatest(w.square() * counts, self.sensitive)
        tensors = Codebook(self.bits).pack(w.masked_fill(apart, 0.0), counts.masked_fill(apart, 0.0))
        if bool(apart.any()):
            ends = torch.cat([apart.new_zeros(1, dtype=torch.long), apart.sum(1).cumsum(0)])
            tensors |= {
                "outlier_rows": ends.int(),
                "outlier_columns": apart.nonzero()[:, 1].int(),
                "outlier_values": w[apart].to(layer.weight.dtype),
            }
        return packed(layer, Codebook(self.bits), tensors)


def _greatest(values: Tensor, share: float) -> Tensor:
    """A mask of this share of the values."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    count = round(share * values.numel())
    mask.view(-1)[values.flatten().topk(count).indices] = True
    return mask
