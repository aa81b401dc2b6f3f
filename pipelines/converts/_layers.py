"""Layers of a network exchanged for others of their shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn


def replaced(
    net: nn.Module,
    make: Callable[[nn.Module], nn.Module | None],
    *,
    skip: Sequence[str] = (),
    smallest: int = 0,
) -> nn.Module:
    """The network, with make(layer) for each layer that has weights of its own; None leaves one.

    Layers whose dotted name fits a pattern of `skip`, or that have fewer weights than `smallest`, stay as they are.
    """
    for name, module in list(net.named_modules()):
        for child, layer in list(module.named_children()):
            whole = f"{name}.{child}" if name else child
            weights = sum(weight.numel() for weight in layer.parameters(recurse=False))
            if not weights or weights < smallest or any(fnmatchcase(whole, pattern) for pattern in skip):
                continue
            new = make(layer)
            if new is not None:
                setattr(module, child, new.train(layer.training))
    return net
