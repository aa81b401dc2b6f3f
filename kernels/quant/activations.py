"""Inputs of layers rounded to few bits: one scale per picture, a given one, or one per group of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .int8 import Scale
from .integers import grouped, positive


@dataclass(frozen=True)
class Activation:
    """How a layer rounds what it is given. Frozen plain numbers, so that a checkpoint can hold it."""

    bits: int = 8
    group: int = 0
    """Channels that share a scale and zero point, of one token; 0: all of a picture share them."""
    scale: Scale | None = None
    """Measured beforehand; with group 0 only."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8, got {self.bits}")
        if self.group and self.scale is not None:
            raise ValueError("a scale given beforehand is for whole tensors; set group to 0")

    def __call__(self, x: Tensor, axis: int) -> Tensor:
        """x [B,...] with its channels along `axis`, after a round through few bits."""
        if self.group:
            return self._in_groups(x.movedim(axis, -1)).movedim(-1, axis)
        if self.scale is not None:
            return _through(
                x, torch.tensor(self.scale.scale), torch.tensor(float(self.scale.zero)), self.bits
            )
        return self._between(x, tuple(range(1, x.ndim)))

    def _in_groups(self, x: Tensor) -> Tensor:
        groups = self._between(grouped(x.flatten(0, -2), self.group), (2,))
        return groups.flatten(1)[:, : x.shape[-1]].reshape(x.shape)

    def _between(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Unsigned, from the least to the greatest along the axes; zero stays zero."""
        low, high = x.amin(dims, keepdim=True).clamp(max=0), x.amax(dims, keepdim=True).clamp(min=0)
        scale = positive((high.float() - low.float()) / (2**self.bits - 1))
        return _through(x, scale, (-low.float() / scale).round(), self.bits)

    def spec(self) -> dict[str, Any]:
        found: dict[str, Any] = {"bits": self.bits, "group_size": self.group}
        return found | ({} if self.scale is None else {"scale": self.scale.scale, "zero": self.scale.zero})


def activation_of(spec: dict[str, Any]) -> Activation:
    """ValueError for what is none."""
    bits, group, zero, scale = (spec.get(name) for name in ("bits", "group_size", "zero", "scale"))
    if type(bits) is not int or type(group) is not int or group < 0:
        raise ValueError(f"an activation needs bits and group_size, got {str(spec)[:80]}")
    if scale is None:
        return Activation(bits, group)
    if type(scale) is not float or not 0 < scale < 1e30 or type(zero) is not int or not 0 <= zero < 2**bits:
        raise ValueError(f"scale and zero of an activation are out of range: {str(spec)[:80]}")
    return Activation(bits, group, Scale(scale, zero))


def _through(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    scale, zero = scale.to(x.device), zero.to(x.device)
    stored = (x.float() / scale + zero).round_().clamp_(0, 2**bits - 1)
    return ((stored - zero) * scale).to(x.dtype)
