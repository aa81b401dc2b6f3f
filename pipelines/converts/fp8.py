"""fp8: linear layers in fp8 (e4m3), weights and activations, with a scale per token and per output channel.

Paper: arXiv:2209.05433 (FP8 Formats for Deep Learning), section 3, with scales per row instead of per tensor
Shapes: any linear layer of a network in any precision
Units and ranges: smallest 0 and up, weights of a layer
Cost: one pass over each layer's input; memory of the layers falls to half of bfloat16. Gains speed on CUDA from compute
    capability 8.9 only; elsewhere the rounded numbers are multiplied in float32
Neutral: smallest above every layer
Errors: ValueError for a setting outside its range
Differs: scales are measured at each call, so nothing has to be calibrated; convolutions stay as they are
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.quant.fp8 import Fp8Linear
from ...kernels.quant.packed import packable
from ._layers import ENDS, replaced


@dataclass(frozen=True)
class Fp8:
    slot: ClassVar[str] = "weights"

    smallest: int = 4096
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""

    def __post_init__(self) -> None:
        if self.smallest < 0:
            raise ValueError(f"smallest must be 0 or more, got {self.smallest}")

    def __call__(self, net: nn.Module) -> nn.Module:
        return replaced(net, _made, skip=self.skip, smallest=self.smallest)


def _made(layer: nn.Module) -> nn.Module | None:
    found = packable(layer)
    return Fp8Linear(found) if isinstance(found, nn.Linear) else None
