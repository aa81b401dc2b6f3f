"""Weights as whole numbers: 8 bits per channel, 2 to 8 bits in groups, and 4 bits in groups that widen to 8 exactly.

Every format takes a weight [O,N] (a convolution's is flattened) to tensors under fixed names and back. Groups run along
N; the last is filled up with zeros. Scales in bfloat16 are rounded before the weights are, so that their own rounding
costs nothing but a little clipping, which the bounds include.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from . import bits as bytes_of
from .int8 import Weight, weight_of

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


def grouped(weight: Tensor, group: int) -> Tensor:
    """[O,N] -> [O,G,group], the last group filled up with zeros."""
    return F.pad(weight, (0, -weight.shape[1] % group)).unflatten(1, (-1, group))


def positive(scale: Tensor) -> Tensor:
    """A group of zeros has the scale 1."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def check_group(group: int) -> None:
    if group < 8 or group % 8:
        raise ValueError(f"group must be a multiple of 8 from 8, got {group}")


@dataclass(frozen=True)
class PerChannel:
    """8 bits, symmetric, one scale per output channel: its maximum / 127. Off by no more than half of that."""

    name = "int8_tensorwise"
    bits = 8
    half = 127

    def pack(self, weight: Tensor) -> Tensors:
        stored, scale = weight_of(weight)
        return {"weight": stored, "weight_scale": scale}

    def unpack(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        return tensors["weight"].float() * tensors["weight_scale"].float()[:, None]

    def shapes(self, rows: int, count: int) -> Shapes:
        return {
            "weight": ((rows, count), torch.int8),
            "weight_scale": ((rows,), torch.float32),
        }

    def steps(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        """[O,count], from one code to the next."""
        return tensors["weight_scale"].float()[:, None].expand(-1, count)

    def coded(self, codes: Tensor) -> Tensor:
        """Codes -127..127 as they are stored."""
        return codes.to(torch.int8)

    def bound(self, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        return tensors["weight_scale"][:, None].expand_as(weight) * 0.5001

    def widened(self, tensors: Mapping[str, Tensor], count: int) -> Weight:
        """For a product in 8 bits."""
        return Weight(tensors["weight"], tensors["weight_scale"])


@dataclass(frozen=True)
class Grouped:
    """2 to 8 bits with a scale in bfloat16 per group; without symmetry, a zero point too."""

    bits: int = 4
    group: int = 64
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8, got {self.bits}")
        check_group(self.group)

    @property
    def name(self) -> str:
        return f"int{self.bits}_group"

    @property
    def levels(self) -> int:
        """The greatest code: 2**bits - 1, or one less with symmetry, so that zero is in the middle."""
        return 2**self.bits - (2 if self.symmetric else 1)

    def pack(self, weight: Tensor) -> Tensors:
        w = grouped(weight.float(), self.group)
        if self.symmetric:
            scale = positive((w.abs().amax(2) * 2 / self.levels).bfloat16())
            zero = torch.full_like(scale, self.levels / 2).float()
        else:
            low, high = w.amin(2).clamp(max=0), w.amax(2).clamp(min=0)
            scale = positive(((high - low) / self.levels).bfloat16())
            zero = (-low / scale.float()).round().clamp(0, self.levels)
        codes = (w / scale.float()[..., None]).round_() + zero[..., None]
        stored = codes.clamp_(0, self.levels).to(torch.uint8).flatten(1)[:, : weight.shape[1]]
        found = {"weight": bytes_of.pack(stored, self.bits), "weight_scale": scale}
        if not self.symmetric:
            found["weight_zero"] = bytes_of.pack(zero.to(torch.uint8), self.bits)
        return found

    def unpack(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        scale = tensors["weight_scale"].float()
        codes = grouped(bytes_of.unpack(tensors["weight"], self.bits, count).float(), self.group)
        if self.symmetric:
            codes = codes - self.levels / 2
        else:
            codes = codes - bytes_of.unpack(tensors["weight_zero"], self.bits, scale.shape[1])[..., None]
        return (codes * scale[..., None]).flatten(1)[:, :count]

    def shapes(self, rows: int, count: int) -> Shapes:
        groups = -(-count // self.group)
        found: Shapes = {
            "weight": ((rows, bytes_of.width(count, self.bits)), torch.int8),
            "weight_scale": ((rows, groups), torch.bfloat16),
        }
        if not self.symmetric:
            found["weight_zero"] = ((rows, bytes_of.width(groups, self.bits)), torch.int8)
        return found

    @property
    def half(self) -> int:
        """Codes are -half..half, which only those of symmetry are."""
        if not self.symmetric:
            raise ValueError("codes with a zero point have no middle; take symmetric = True")
        return self.levels // 2

    def steps(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        """[O,count], from one code to the next."""
        return tensors["weight_scale"].float().repeat_interleave(self.group, 1)[:, :count]

    def coded(self, codes: Tensor) -> Tensor:
        """Codes -half..half as they are stored."""
        return bytes_of.pack((codes + self.half).to(torch.uint8), self.bits)

    def bound(self, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Half a level, or what a scale rounded down by a 256th clips, and half a level more of the zero point's."""
        clipped = self.levels / 2**8 * (0.5 if self.symmetric else 1)
        most = max(0.5, clipped) if self.symmetric else 0.5 + clipped
        scale = tensors["weight_scale"].float().repeat_interleave(self.group, 1)[:, : weight.shape[1]]
        return scale * most * 1.0001

    def widened(self, tensors: Mapping[str, Tensor], count: int) -> Weight | None:
        return None


@dataclass(frozen=True)
class DualGrained:
    """4 bits in groups whose scales are whole numbers times one scale per channel (arXiv:2310.04836, section 3.1).

    code * group scale is a whole number in -126..126, so the weight is one in 8 bits per channel too, without another
    rounding. Of the two whole scales about a group's own the one with the smaller error is taken.
    """

    group: int = 64
    name = "int4_int8"
    bits = 4
    half = 7

    def __post_init__(self) -> None:
        check_group(self.group)

    def pack(self, weight: Tensor) -> Tensors:
        w = grouped(weight.float(), self.group)
        channel = positive(w.abs().amax((1, 2)) / 126)
        steps = w / channel[:, None, None]
        need = steps.abs().amax(2, keepdim=True) / 7
        low, high = need.floor().clamp(1, 18), need.sub(1e-4).ceil().clamp(1, 18)
        q_low, q_high = ((steps / k).round().clamp(-7, 7) for k in (low, high))
        worse = (q_low * low - steps).square().sum(2) > (q_high * high - steps).square().sum(2)
        codes = torch.where(worse[..., None], q_high, q_low) + 7
        scale = torch.where(worse[..., None], high, low)[..., 0]
        stored = codes.to(torch.uint8).flatten(1)[:, : weight.shape[1]]
        return {
            "weight": bytes_of.pack(stored, 4),
            "weight_scale": scale.to(torch.int8),
            "weight_scale_2": channel,
        }

    def widened(self, tensors: Mapping[str, Tensor], count: int) -> Weight:
        """Exactly this weight in 8 bits per channel."""
        codes = grouped(bytes_of.unpack(tensors["weight"], 4, count).to(torch.int8) - 7, self.group)
        stored = (codes * tensors["weight_scale"][..., None]).flatten(1)[:, :count]
        return Weight(stored.contiguous(), tensors["weight_scale_2"])

    def unpack(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        stored, scale = self.widened(tensors, count)
        return stored.float() * scale.float()[:, None]

    def shapes(self, rows: int, count: int) -> Shapes:
        return {
            "weight": ((rows, bytes_of.width(count, 4)), torch.int8),
            "weight_scale": ((rows, -(-count // self.group)), torch.int8),
            "weight_scale_2": ((rows,), torch.float32),
        }

    def steps(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        """[O,count], from one code to the next."""
        scale = tensors["weight_scale"].float() * tensors["weight_scale_2"][:, None]
        return scale.repeat_interleave(self.group, 1)[:, :count]

    def coded(self, codes: Tensor) -> Tensor:
        """Codes -7..7 as they are stored."""
        return bytes_of.pack((codes + 7).to(torch.uint8), 4)

    def bound(self, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Of the root mean square of a group: half of its own step rounded up to a whole one."""
        scale, channel = grouped(weight.float(), self.group), tensors["weight_scale_2"][:, None]
        need = (scale.abs().amax(2) / 7 / channel - 1e-4).ceil().clamp(1, 18) * channel
        return need.repeat_interleave(self.group, 1)[:, : weight.shape[1]] * 0.501
