"""channels-last: convolutions whose channels are neighbours in memory, as tensor cores want them.

Paper: none, because it is an order in memory: https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html
Shapes: any network with 2D convolutions
Units and ranges: none
Cost: none; without it a GPU turns every picture over before and after a convolution in half precision
Neutral: a network without convolutions stays as it is
Errors: none
Differs: the autoencoders of Stable Diffusion's kin have this order anyway
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


@dataclass(frozen=True)
class ChannelsLast:
    slot: ClassVar[str] = "layout"

    def __call__(self, net: nn.Module) -> nn.Module:
        for layer in net.modules():
            if type(layer) is nn.Conv2d:
                layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
        return net
