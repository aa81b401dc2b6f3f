"""The site 'skip': the layers of a UNet on either side of each skip connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import NoSite


@dataclass(frozen=True)
class Inside:
    """What lies deeper than a skip connection."""

    skipped: tuple[nn.Module, ...]
    """Modules that need not run, whose answers only later ones of them read, and then `source`'s."""
    source: int
    """Which of them gives the feature that the layers within the connection go on with."""


def inside(net: nn.Module, branch: int) -> Inside:
    """The part of a UNet that lies deeper than its skip connection `branch`, 0 the outermost."""
    from diffusers import UNet2DConditionModel, UNetMotionModel, UNetSpatioTemporalConditionModel

    if not isinstance(net, UNet2DConditionModel | UNetMotionModel | UNetSpatioTemporalConditionModel):
        raise NoSite(
            f"{type(net).__name__} has no site 'skip': it is none of diffusers' UNets with a condition"
        )
    unet: Any = net
    ups = [_layers(block) for block in unet.up_blocks]
    downs = [part for block in unet.down_blocks for part in (*_layers(block), *_samplers(block))]
    connections = len(downs) + 1  # the first comes from conv_in
    if unet.mid_block is None or sum(map(len, ups)) != connections:
        raise NoSite(f"{type(net).__name__} has no site 'skip': its layers do not pair up")
    if branch >= connections:
        raise ValueError(f"branch must be in 0..{connections - 1} in this network, got {branch}")
    skipped = [module for part in downs[branch:] for module in part] + [unet.mid_block]
    left = connections - 1 - branch
    for block, layers in zip(unet.up_blocks, ups, strict=True):
        if left >= len(layers):
            skipped.append(block)
        else:
            skipped += [module for part in layers[:left] for module in part]
        left = max(left - len(layers), 0)
        if left == 0:
            break
    return Inside(tuple(skipped), len(skipped) - 1)


def _layers(block: Any) -> list[tuple[nn.Module, ...]]:
    """Each resnet with what follows it: attention, attention in time, or nothing."""
    lists: dict[str, Any] = dict(block._modules)
    if lists.get("resnets") is None:
        raise NoSite(f"the UNet has no site 'skip': a {type(block).__name__} has no resnets")
    parts = [
        lists[name] for name in ("resnets", "attentions", "motion_modules") if lists.get(name) is not None
    ]
    return [tuple(layer) for layer in zip(*parts, strict=True)]


def _samplers(block: Any) -> list[tuple[nn.Module, ...]]:
    samplers = dict(block._modules).get("downsamplers")
    return [] if samplers is None else [(sampler,) for sampler in samplers]


def shapes(out: Any, count: int) -> Any:
    """Shapes of what a module gives for each of `count` conditions; in a list if it gives a tuple."""
    if isinstance(out, tuple):
        return [shapes(part, count) for part in out]
    return (len(out) // count, *out.shape[1:])


def blank(like: Tensor, shapes: Any, count: int) -> Any:
    """What stands in for the answer of a module that is passed by; nothing reads its values."""
    if isinstance(shapes, list):
        return tuple(blank(like, shape, count) for shape in shapes)
    return like.new_zeros(shapes[0] * count, *shapes[1:])
