"""products: linear layers and 1 x 1 convolutions in float32 in C++, with norms, gates and sums beside them in one pass.

Paper: none, for it is the same arithmetic in another order
Shapes: any linear layer, or 1 x 1 convolution of stride 1, of a network in float32 on a processor
Units and ranges: smallest 0 and up, weights of a layer
Cost: weights of these layers are copied into memory where a mapped file held them
Neutral: smallest above every layer
Errors: ValueError where the kernels can't run (it says what is lacking), or for a network that is elsewhere or not in
    float32
Differs: nothing; results differ from torch's by the order of sums
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.dense import dense
from ...kernels.native.around import available
from ...kernels.quant.packed import packable
from ._around import gathered
from ._layers import ENDS, on_processor, replaced


@dataclass(frozen=True)
class Products:
    slot: ClassVar[str] = "products"

    smallest: int = 4096
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything: where a network begins, ends and hears the time."""

    def __post_init__(self) -> None:
        if self.smallest < 0:
            raise ValueError(f"smallest must be 0 or more, got {self.smallest}")

    def __call__(self, net: nn.Module) -> nn.Module:
        lacking = available()
        if lacking:
            raise ValueError(f"products: {lacking}; leave it out")
        on_processor(net, "products")

        def converted(layer: nn.Module) -> nn.Module | None:
            plain = packable(layer)
            return None if plain is None else dense(plain)

        return gathered(replaced(net, converted, skip=self.skip, smallest=self.smallest))
