"""int8: linear layers and convolutions in 8 bits on a processor, with scales measured at each call.

Paper: arXiv:1712.05877 (Jacob et al.), section 2, with weights per channel and symmetric (arXiv:1806.08342, section 3)
Shapes: any linear layer or 2D convolution of a network in float32 on a processor
Units and ranges: smallest 0 and up and tiled 0 and up, weights of a layer
Cost: one pass over each layer's input; memory of the layers falls to a quarter. Where C++ compiles, on processors with
    AVX-512 VNNI, norms, gates and sums beside the layers are computed with them, and 3 x 3 convolutions by Winograd's
    F(2 x 2, 3 x 3) (arXiv:1509.09308), whose tiles are what is rounded: 4/9 of the products
Neutral: smallest above every layer
Errors: ValueError where torch or the processor has no 8-bit products, or the network is elsewhere or not in float32
Differs: activations are measured at each call instead of beforehand, so nothing has to be calibrated: a scale for each
    row of a linear layer and each picture of a convolution
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from ...kernels.dense import dense
from ...kernels.native.around import available as native
from ...kernels.quant.int8 import available
from ...kernels.quant.layers import Int8Conv2d, Int8Linear, int8
from ...kernels.steady import steady
from ._around import gathered
from ._layers import on_processor, replaced


@dataclass(frozen=True)
class Int8:
    slot: ClassVar[str] = "weights"

    smallest: int = 4096
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = (
        *("conv_in", "conv_out", "proj_out", "norm_out*", "*pos_embed*", "*embedder*", "*embedding*"),
        *("*time_emb*", "*adaln*", "*norm*.linear"),
    )
    """Names of layers that stay as they are, with * for anything: where a network begins, ends and hears the time."""

    tiled: int = 12_000_000
    """Weights up to which a 3 x 3 convolution goes by tiles: 1.6 times as fast and 1.8 times as large, 0 and up."""

    def __post_init__(self) -> None:
        if self.smallest < 0:
            raise ValueError(f"smallest must be 0 or more, got {self.smallest}")
        if self.tiled < 0:
            raise ValueError(f"tiled must be 0 or more, got {self.tiled}")

    def __call__(self, net: nn.Module) -> nn.Module:
        lacking = available()
        if lacking:
            raise ValueError(f"int8: {lacking}; leave it out")
        on_processor(net, "int8")
        replaced(net, partial(int8, tiled=self.tiled), skip=self.skip, smallest=self.smallest)
        if not any(isinstance(layer, Int8Linear | Int8Conv2d) for layer in net.modules()):
            return net
        if native() is None:
            replaced(net, _dense)  # for products that are the same in any batch
        return gathered(steady(net))


def _dense(layer: nn.Module) -> nn.Module | None:
    plain = type(layer) is nn.Linear and layer.weight.dtype == torch.float32
    return dense(layer) if plain else None
