"""ptq4dm: 8-bit layers with scales fixed beforehand, from inputs of many steps of which the useful ones count most.

Paper: arXiv:2211.15736 (Post-training Quantization on Diffusion Models), section 3.3
Shapes: any linear layer or 2D convolution; products in 8 bits where the network is in float32 on a processor
Units and ranges: mean 0..1 and spread above 0, shares of the run, 0 its clean end; smallest 0 and up
Cost: one pass less over each layer's input than int8; files fall to a quarter, and on a processor a second form is held
Neutral: smallest above every layer
Errors: ValueError outside these ranges, or without `seen`
Differs: steps are weighted by the density of the paper's normal distribution instead of drawn from it; the scale with
    the least squared error of the inputs is the best of twenty
Tasks: image, video
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...kernels.quant.activations import Activation
from ...kernels.quant.int8 import Scale, scale_of
from ...kernels.quant.integers import PerChannel
from ...kernels.quant.packed import Layer, matrix
from ._calibration import Seen
from ._layers import ENDS
from ._packing import SMALLEST, check_range, check_smallest, pack_layer, pack_layers

_TRIALS = 20
"""Scales that are tried, from the whole range down to a twentieth of it."""


@dataclass(frozen=True)
class Ptq4dm:
    seen: Seen
    """What the layers are given."""

    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[int] = 8

    mean: float = 0.4
    """Where in the run the useful steps are: 0 the clean end, 1 the noisy one."""
    spread: float = 0.4
    """Standard deviation about the mean, in shares of the run, above 0."""
    smallest: int = SMALLEST
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""

    def __post_init__(self) -> None:
        check_smallest(self.smallest)
        check_range("mean", self.mean, 0, 1)
        if not self.spread > 0:
            raise ValueError(f"spread must be above 0, got {self.spread}")

    def __call__(self, net: nn.Module) -> nn.Module:
        return pack_layers(net, self._static, skip=self.skip, smallest=self.smallest)

    def _static(self, name: str, layer: Layer) -> nn.Module | None:
        """None, which leaves a layer, for one that was never called."""
        found = self.seen.layers.get(name)
        if found is None:
            return None
        density = self._density()
        rows, counts = found.rows.float(), density[found.at]
        if rows.shape[1] < 2:  # of a convolution in groups, only ranges are known
            used = found.ranges[density > 0.05 * density.max()]
            scale = scale_of(float(used[:, 0].min()), float(used[:, 1].max()))
        else:
            scale = _best(rows[counts > 0], counts[counts > 0])
        return pack_layer(layer, PerChannel(), matrix(layer), activation=Activation(8, 0, scale))

    def _density(self) -> Tensor:
        """[steps], the greatest 1; far from the mean exactly 0."""
        last = max(self.seen.steps - 1, 1)
        places = 1 - torch.arange(self.seen.steps) / last
        off = (places - self.mean) / self.spread
        off = off.abs() - off.abs().min()  # however narrow, the nearest step counts
        return torch.tensor([math.exp(-(x**2) / 2) if x < 4 else 0.0 for x in off.tolist()])


def _best(rows: Tensor, counts: Tensor) -> Scale:
    low, high = (float(end) for end in torch.aminmax(rows))

    def loss(scale: Scale) -> float:
        back = Activation(8, 0, scale)(rows, -1)
        return float(((back - rows).square().sum(1) * counts).sum())

    shares = [(i + 1) / _TRIALS for i in range(_TRIALS)]
    return min((scale_of(low * share, high * share) for share in shares), key=loss)
