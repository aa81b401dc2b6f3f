"""w8a8: linear layers in 8 bits on both sides, fp8 or int8, a scale per token and output channel (alias fp8).

Paper: arXiv:2209.05433 (FP8 Formats for Deep Learning), section 3, with scales per row instead of per tensor; for int8
    arXiv:2211.10438 (SmoothQuant), section 2, per token and channel
Shapes: any linear layer of a network in any precision
Units and ranges: kind fp8 or int8; smallest 0 and up, weights of a layer
Cost: one pass over each layer's input, which compiled code joins with what stands before; memory of the layers falls to
    half of bfloat16. Gains speed on CUDA alone, in bfloat16 and float16: fp8 from compute capability 8.9, int8 from 8.0
    with Triton; elsewhere the rounded numbers are multiplied in float32
Neutral: smallest above every layer
Errors: ValueError for a setting outside its range
Differs: scales are measured at each call, so nothing has to be calibrated; convolutions stay as they are
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ...kernels.quant.by_row import ByRowLinear
from ...kernels.quant.packed import packable
from ...kernels.quant.products import FP8
from ...kernels.steady import steady
from ._layers import ENDS, replaced

KINDS = {"fp8": FP8, "int8": torch.int8}


@dataclass(frozen=True)
class W8A8:
    slot: ClassVar[str] = "weights"

    kind: str = "fp8"
    """Of the numbers: fp8, or int8 for devices without."""
    smallest: int = 4096
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.smallest < 0:
            raise ValueError(f"smallest must be 0 or more, got {self.smallest}")

    def __call__(self, net: nn.Module) -> nn.Module:
        replaced(net, self._made, skip=self.skip, smallest=self.smallest)
        return steady(net) if any(isinstance(layer, ByRowLinear) for layer in net.modules()) else net

    def _made(self, layer: nn.Module) -> nn.Module | None:
        found = packable(layer)
        return ByRowLinear(found, KINDS[self.kind]) if isinstance(found, nn.Linear) else None
