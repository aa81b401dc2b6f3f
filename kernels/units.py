"""A network cut into units: modules whose weights come and go together.

A unit is the largest module below the network that is called and fits into a bucket. A module that reads the weights of
its layers itself, without calling them, is never cut. What is smaller than a sixty-fourth of a bucket and stands alone
stays in memory, as do norms that stand alone, weights that two modules share, and those of a module that is cut.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

SMALL = 64
"""A module of fewer bytes than a bucket's part in this, standing alone, is not worth moving."""

READERS = ("MultiheadAttention", "HunyuanDiTAttentionPool", "FirDownsample2D", "FirUpsample2D")
"""Classes whose modules compute with the weights of layers that they never call."""

NORMS = (nn.LayerNorm, nn.GroupNorm)
"""So small that they stay where they would stand alone: the product after one may compute it, from its weights."""


def within(module: nn.Module, names: Iterable[str]) -> bool:
    """Whether it is of one of these classes, or of one made from them."""
    return any(kind.__name__ in names for kind in type(module).__mro__)


def units_of(net: nn.Module, bucket: int) -> tuple[list[tuple[str, nn.Module]], list[tuple[nn.Module, str]]]:
    """The modules that come and go, by dotted name, and (module, dotted name) of the tensors that stay."""
    seen: dict[int, int] = {}
    for module in net.modules():
        for _, tensor in own(module):
            seen[id(tensor)] = seen.get(id(tensor), 0) + 1
    shared = {key for key, times in seen.items() if times > 1}
    found: list[tuple[str, nn.Module]] = []
    stay: list[tuple[nn.Module, str]] = []

    def walk(prefix: str, module: nn.Module) -> None:
        whole = bytes_of(module)
        if whole == 0:
            return
        splits = any(True for _ in module.children()) and not within(module, READERS)
        tied = any(id(tensor) in shared for part in module.modules() for _, tensor in own(part))
        called = module is not net and type(module).forward is not nn.Module.forward
        called = called and not isinstance(module, NORMS)
        fits = called and not tied and (whole <= bucket or not splits)
        if fits and whole * SMALL >= bucket:
            found.append((prefix, module))
        elif fits or not splits:
            for path, part in module.named_modules():
                stay.extend((part, _joined(prefix, path, name)) for name, _ in own(part))
        else:
            stay.extend((module, _joined(prefix, name)) for name, _ in own(module))
            for name, child in module.named_children():
                walk(_joined(prefix, name), child)

    walk("", net)
    return found, stay


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def needing(unit: nn.Module) -> list[nn.Module]:
    """The modules whose calls need a unit's weights: itself, and its layers, which others may call on their own."""
    return [part for part in unit.modules() if part is unit or own(part)]


def own(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights and buffers of a module itself."""
    held = [*module._parameters.items(), *module._buffers.items()]
    return [(name, tensor) for name, tensor in held if tensor is not None]


def bytes_of(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Of a module's weights and buffers, in this precision if one is given."""
    tensors = {id(t): t for part in module.modules() for _, t in own(part)}
    return sum(t.numel() * as_type(t, dtype).itemsize for t in tensors.values())


def as_type(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type in which it computes: whole numbers keep theirs."""
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
