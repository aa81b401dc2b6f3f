"""winograd: 3 x 3 convolutions with a quarter of the multiplications, in float32 on a processor.

Paper: arXiv:1509.09308, section 4.3, F(4 x 4, 3 x 3)
Shapes: any convolution 3 x 3 of stride 1, padded by 1, of a network in float32 on a processor
Units and ranges: channels 1 and up, the fewest in and out of a layer that is converted
Cost: weights of these layers take 4 times the memory. Where C++ compiles, on processors with AVX-512 VNNI, group norms,
    gates and sums beside the layers are computed with them, and a layer takes 0.25 to 0.5 of torch's time
Neutral: channels above every layer's
Errors: ValueError for a setting outside its range, or a network that is elsewhere or not in float32
Differs: nothing; results differ from the direct convolution's in the sixth digit
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.quant.packed import packable
from ...kernels.winograd import WinogradConv2d, fits
from ._around import gathered
from ._layers import on_processor, replaced


@dataclass(frozen=True)
class Winograd:
    slot: ClassVar[str] = "convolutions"

    channels: int = 64
    """Fewest channels in and out; with fewer the maps cost more than they save. 1 and up."""

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be 1 or more, got {self.channels}")

    def __call__(self, net: nn.Module) -> nn.Module:
        on_processor(net, "winograd")

        def converted(layer: nn.Module) -> nn.Module | None:
            if not isinstance(layer, nn.Conv2d) or packable(layer) is None or not fits(layer):
                return None
            wide = min(layer.in_channels, layer.out_channels) >= self.channels
            return WinogradConv2d(layer) if wide else None

        return gathered(replaced(net, converted))
