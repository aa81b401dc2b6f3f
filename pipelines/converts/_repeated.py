"""What a network repeats: the blocks that are worth compiling, as all of a kind share their code."""

from __future__ import annotations

from torch import nn

from ..blocks import stacks
from ..errors import NoSite

IN_UNETS = (
    *("BasicTransformerBlock", "TemporalBasicTransformerBlock", "ResnetBlock2D", "SpatioTemporalResBlock"),
    *("ResnetBlockCondNorm2D", "AnimateDiffTransformer3D"),
)
"""Classes of blocks that a UNet repeats."""


def regions(net: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, or a UNet's residual and transformer blocks."""
    try:
        return [block.module for stack in stacks(net) for block in stack]
    except NoSite:
        found = [module for module in net.modules() if type(module).__name__ in IN_UNETS]
        if not found:
            raise
        return found
