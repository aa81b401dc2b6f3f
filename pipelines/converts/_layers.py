"""Layers of a network exchanged for others of their shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from ...kernels.mapped import give_back, let_go
from ...kernels.offload import offloaded
from ...kernels.units import READERS, within

ENDS = (
    *("*conv_in", "*conv_out", "proj_out", "norm_out*", "*pos_embed*", "*embedder*", "*embedding*"),
    *("*time_emb*", "*adaln*", "*norm*.linear"),
)
"""Names of layers that are best left alone, with * for anything: where a network begins, ends and hears the time."""

ASKING = ("ImageProjection", "TimestepEmbedder", "WanTimeTextImageEmbedding")
"""Classes of diffusers whose modules give their layers what the type of the layers' weights asks for."""


LARGE = 1 << 20
"""Bytes."""


def on_processor(net: nn.Module, name: str) -> None:
    """Refuse a network that is elsewhere, or in another precision, than our kernels for processors."""
    like = next(weight for weight in net.parameters() if weight.is_floating_point())
    if like.device.type != "cpu" or like.dtype != torch.float32:
        raise ValueError(
            f"{name} is for networks in float32 on a processor, this one is {like.dtype} on {like.device}"
        )


def chosen(net: nn.Module, *, skip: Sequence[str] = (), smallest: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Dotted names and layers that have weights of their own, one by one; a layer may be exchanged meanwhile.

    Those whose name fits a pattern of `skip`, or that have fewer weights than `smallest`, are passed over, and so are
    those whose weights the module around them reads.
    """
    if offloaded(net) is not None:
        raise ValueError("the network's weights are offloaded: convert it first, offload it last")
    reading = tuple(f"{name}." for name, part in net.named_modules() if within(part, (*READERS, *ASKING)))
    for name in [name for name, _ in net.named_modules() if name and not name.startswith(reading)]:
        layer = net.get_submodule(name)
        weights = sum(weight.numel() for weight in layer.parameters(recurse=False))
        if weights and weights >= smallest and not any(fnmatchcase(name, pattern) for pattern in skip):
            yield name, layer


def exchange(net: nn.Module, name: str, new: nn.Module) -> None:
    """What the old layer alone had leaves memory."""
    parent, _, child = name.rpartition(".")
    old = net.get_submodule(name)
    setattr(net.get_submodule(parent), child, new.train(old.training))
    kept = {weight.data_ptr() for weight in new.parameters()}
    let_go(weight for weight in old.parameters(recurse=False) if weight.data_ptr() not in kept)
    if sum(weight.nbytes for weight in old.parameters(recurse=False)) >= LARGE:
        give_back()  # gaps of a heap in which layers come and go


def replaced(
    net: nn.Module,
    make: Callable[[nn.Module], nn.Module | None],
    *,
    skip: Sequence[str] = (),
    smallest: int = 0,
) -> nn.Module:
    """The network, with make(layer) for each layer that is `chosen`; None leaves one."""
    for name, layer in chosen(net, skip=skip, smallest=smallest):
        new = make(layer)
        if new is not None:
            exchange(net, name, new)
    return net
