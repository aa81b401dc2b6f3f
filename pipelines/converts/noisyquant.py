"""noisyquant: a fixed noise on what a layer is given before it is rounded, taken off again from what it gives.

Paper: arXiv:2211.16056 (NoisyQuant), section 3
Shapes: linear layers; convolutions are rounded without noise
Units and ranges: bits 3..8 of activations; weights have 8; smallest 0 and up, weights of a layer
Cost: one sum per layer and call; three numbers per channel beside each weight
Neutral: smallest above every layer
Errors: ValueError outside these ranges, or without `seen`
Differs: how strong the noise is, or that there is none, is decided layer by layer by the error of products with inputs
    seen in calibration
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...kernels.quant.activations import Activation
from ...kernels.quant.int8 import scale_of
from ...kernels.quant.integers import PerChannel
from ...kernels.quant.packed import Layer, matrix
from ._calibration import Seen
from ._layers import ENDS
from ._packing import SMALLEST, check_range, check_smallest, pack_layer, pack_layers, rounded_rows, seen_rows

_STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Greatest noise, in steps of the rounding."""


@dataclass(frozen=True)
class NoisyQuant:
    seen: Seen
    """What the layers are given."""

    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[int] = 8

    bits: int = 6
    """Of the activations, 3..8."""
    smallest: int = SMALLEST
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""

    def __post_init__(self) -> None:
        check_smallest(self.smallest)
        check_range("bits", self.bits, 3, 8)

    def __call__(self, net: nn.Module) -> nn.Module:
        return pack_layers(net, self._noisy, skip=self.skip, smallest=self.smallest)

    def _noisy(self, name: str, layer: Layer) -> nn.Module:
        w, rows, activation = matrix(layer), seen_rows(self.seen, name), Activation(self.bits)
        if rows is None or not isinstance(layer, nn.Linear):
            return pack_layer(layer, PerChannel(), w, activation=activation)
        form = PerChannel()
        rounded = form.unpack(form.pack(w), w.shape[1])
        low, high = (float(end) for end in torch.aminmax(rows))
        step = scale_of(low, high).scale * 255 / (2**self.bits - 1)
        shape = torch.rand(w.shape[1], generator=torch.Generator().manual_seed(0)) * 2 - 1

        def loss(noise: Tensor) -> float:
            off = rounded_rows(layer, activation, rows + noise) - (rows + noise)
            return float((off @ rounded.T).square().sum())

        noise = min((shape * step * strength for strength in (0.0, *_STRENGTHS)), key=loss)
        beside = {"input_noise": noise, "noise_output": rounded @ noise} if bool(noise.any()) else {}
        return pack_layer(layer, form, w, beside, activation)
