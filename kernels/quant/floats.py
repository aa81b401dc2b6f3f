"""Weights as small floating-point numbers with shared scales (minifloats), and in the 16 values of NF4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from . import bits as bytes_of
from .int8 import Weight
from .integers import Shapes, Tensors, check_group, grouped, positive

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""arXiv:2305.14314, appendix E: quantiles of the normal distribution, with an exact zero."""

SPARE = {(4, 3): 1, (5, 2): 4}
"""Codes at the top that stand for NaN and infinity; the smaller formats have none (OCP MX 1.0, sections 5.3.1-3)."""


@cache
def values(exponent: int, mantissa: int) -> Tensor:
    """What the codes of a minifloat without its sign mean, rising, [2**(exponent + mantissa) - spare]."""
    codes = torch.arange(2 ** (exponent + mantissa) - SPARE.get((exponent, mantissa), 0))
    field, fraction = (codes >> mantissa).double(), (codes & 2**mantissa - 1).double() / 2**mantissa
    bias = 2 ** (exponent - 1) - 1
    normal = (1 + fraction) * 2.0 ** (field - bias)
    return torch.where(field > 0, normal, fraction * 2.0 ** (1 - bias)).float()


@dataclass(frozen=True)
class MiniFloat:
    """A sign, `exponent` and `mantissa` bits. `group` 0: a float32 scale per channel; else a power of two per group.

    Powers of two are rounded up (the standard's may saturate the greatest of a group), so nothing is clipped.
    """

    exponent: int = 4
    mantissa: int = 3
    group: int = 0

    def __post_init__(self) -> None:
        if not (2 <= self.exponent <= 5 and 1 <= self.mantissa <= 3 and 3 < self.bits <= 8):
            raise ValueError(f"no minifloat has {self.exponent} exponent and {self.mantissa} mantissa bits")
        if self.group:
            check_group(self.group)

    @property
    def name(self) -> str:
        return f"e{self.exponent}m{self.mantissa}"

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    def pack(self, weight: Tensor) -> Tensors:
        w = grouped(weight.float(), self.group or weight.shape[1])
        most = float(values(self.exponent, self.mantissa)[-1])
        scale = positive(w.abs().amax(2) / most)
        if self.group:
            power = scale.log2().ceil().clamp(-127, 127)
            scale, stored = torch.exp2(power), {"weight_scale": power.to(torch.int8)}
        else:
            stored = {"weight_scale": scale}
        codes = self._codes(w / scale[..., None]).flatten(1)[:, : weight.shape[1]]
        return {"weight": bytes_of.pack(codes, self.bits), **stored}

    def _codes(self, x: Tensor) -> Tensor:
        """The nearest, ties to even. A mantissa that rounds up into the next exponent is that exponent's first code."""
        least = 2 - 2 ** (self.exponent - 1)
        exponent = torch.where(x == 0, least, torch.frexp(x).exponent - 1).clamp(min=least)
        steps = torch.ldexp(x.abs(), self.mantissa - exponent).round()
        codes = (exponent - least) * 2**self.mantissa + steps
        codes = codes.clamp(max=len(values(self.exponent, self.mantissa)) - 1).to(torch.uint8)
        return codes | (x < 0).to(torch.uint8) << (self.bits - 1)

    def unpack(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        scale = tensors["weight_scale"]
        codes = bytes_of.unpack(tensors["weight"], self.bits, count).int()
        table = values(self.exponent, self.mantissa).to(scale.device)
        size = table[(codes & 2 ** (self.bits - 1) - 1).clamp(max=len(table) - 1)]
        w = torch.where(codes >> (self.bits - 1) > 0, -size, size)
        scale = torch.exp2(scale.float()) if self.group else scale.float()
        return (grouped(w, self.group or count) * scale[..., None]).flatten(1)[:, :count]

    def shapes(self, rows: int, count: int) -> Shapes:
        groups = -(-count // self.group) if self.group else 1
        kind = torch.int8 if self.group else torch.float32
        return {
            "weight": ((rows, bytes_of.width(count, self.bits)), torch.int8),
            "weight_scale": ((rows, groups), kind),
        }

    def bound(self, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Half a step: relative to the weight, and no less than that of the smallest numbers."""
        scale = tensors["weight_scale"]
        scale = torch.exp2(scale.float()) if self.group else scale
        least = scale * 2.0 ** (1 - 2 ** (self.exponent - 1) + 1 - self.mantissa) / 2
        least = least.repeat_interleave(self.group or weight.shape[1], 1)[:, : weight.shape[1]]
        return torch.maximum(weight.abs() / 2 ** (self.mantissa + 1), least) * 1.0001

    def widened(self, tensors: Mapping[str, Tensor], count: int) -> Weight | None:
        return None


@dataclass(frozen=True)
class NormalFloat:
    """NF4: 16 values up to the group's maximum. `double` keeps the maxima in 8 bits, 256 to a scale."""

    group: int = 64
    double: bool = True
    name = "nf4"
    bits = 4
    BLOCK = 256

    def __post_init__(self) -> None:
        check_group(self.group)

    def pack(self, weight: Tensor) -> Tensors:
        w = grouped(weight.float(), self.group)
        most, stored = self._maxima(w.abs().amax(2))
        table = torch.tensor(NF4, device=w.device)
        codes = torch.bucketize(w / positive(most)[..., None], (table[1:] + table[:-1]) / 2).to(torch.uint8)
        return {"weight": bytes_of.pack(codes.flatten(1)[:, : weight.shape[1]], 4), **stored}

    def _maxima(self, most: Tensor) -> tuple[Tensor, Tensors]:
        """As they will be read again: rounded before the weights are divided by them, and never down."""
        if not self.double:
            return most, {"weight_scale": most}
        blocks = grouped(most.flatten()[None], self.BLOCK)[0]
        step = positive(blocks.amax(1) / 255)
        codes = (blocks / step[:, None] - 1e-4).ceil().clamp(0, 255).to(torch.uint8)
        stored = {"weight_scale": codes.flatten()[: most.numel()].view(most.shape).contiguous()}
        stored |= {"weight_scale_2": step}
        stored["weight_scale"] = stored["weight_scale"].view(torch.int8)
        return self._read(stored), stored

    def _read(self, tensors: Mapping[str, Tensor]) -> Tensor:
        scale = tensors["weight_scale"]
        if not self.double:
            return scale.float()
        codes = grouped(scale.contiguous().view(torch.uint8).float().flatten()[None], self.BLOCK)[0]
        return (
            (codes * tensors["weight_scale_2"].float()[:, None]).flatten()[: scale.numel()].view(scale.shape)
        )

    def unpack(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        most = self._read(tensors)
        table = torch.tensor(NF4, device=most.device)
        w = grouped(table[bytes_of.unpack(tensors["weight"], 4, count).int()], self.group)
        return (w * most[..., None]).flatten(1)[:, :count]

    def shapes(self, rows: int, count: int) -> Shapes:
        groups = -(-count // self.group)
        found: Shapes = {
            "weight": ((rows, bytes_of.width(count, 4)), torch.int8),
            "weight_scale": ((rows, groups), torch.int8 if self.double else torch.float32),
        }
        if self.double:
            found["weight_scale_2"] = ((-(-rows * groups // self.BLOCK),), torch.float32)
        return found

    def bound(self, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Half the widest gap between two of the values (the lowest two), times the maximum."""
        most = self._read(tensors).repeat_interleave(self.group, 1)[:, : weight.shape[1]]
        return most * (NF4[1] - NF4[0]) / 2 * 1.0005

    def widened(self, tensors: Mapping[str, Tensor], count: int) -> Weight | None:
        return None
