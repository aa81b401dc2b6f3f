"""All formats of packed weights under their names, and what each takes of a weight [O,N]."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from .codebook import Codebook
from .floats import MiniFloat, NormalFloat
from .int8 import Weight
from .integers import DualGrained, Grouped, PerChannel, Shapes, Tensors


class Format(Protocol):
    """A frozen value: two of the same settings are equal."""

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> int:
        """Per weight, without scales."""
        ...

    def pack(self, weight: Tensor) -> Tensors:
        """[O,N] to named tensors; "weight" holds the codes, int8."""
        ...

    def unpack(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        """The weight [O,count], float32."""
        ...

    def shapes(self, rows: int, count: int) -> Shapes:
        """What `pack` gives of [rows,count]."""
        ...

    def widened(self, tensors: Mapping[str, Tensor], count: int) -> Weight | None:
        """Exactly the same weight in 8 bits per channel, if there is such."""
        ...


def size_of(form: Format, rows: int, count: int) -> int:
    """Bytes, scales and tables included."""
    return sum(math.prod(shape) * kind.itemsize for shape, kind in form.shapes(rows, count).values())


def bits_per_weight(form: Format, rows: int, count: int) -> float:
    """Scales and tables included."""
    return 8 * size_of(form, rows, count) / (rows * count)


def spec_of(form: Format) -> dict[str, Any]:
    """Plain values, from which `format_of` makes it again."""
    found: dict[str, Any] = {"format": form.name}
    if isinstance(form, Grouped | DualGrained | NormalFloat | MiniFloat) and form.group:
        found["group_size"] = form.group
    if isinstance(form, Grouped):
        found["symmetric"] = form.symmetric
    if isinstance(form, NormalFloat):
        found["double"] = form.double
    return found


def format_of(spec: Mapping[str, Any]) -> Format:
    """ValueError for what no format is."""
    name, group = spec.get("format"), spec.get("group_size", 0)
    if not isinstance(name, str) or type(group) is not int or not 0 <= group <= 2**20:
        raise ValueError(f"format must be a name and group_size a number, got {str(dict(spec))[:80]}")
    if name == PerChannel.name:
        return PerChannel()
    if name == DualGrained.name:
        return DualGrained(group)
    if name == NormalFloat.name:
        return NormalFloat(group, spec.get("double") is True)
    if found := re.fullmatch(r"int([2-8])_group", name):
        return Grouped(int(found[1]), group, spec.get("symmetric") is True)
    if found := re.fullmatch(r"e([2-5])m([1-3])", name):
        return MiniFloat(int(found[1]), int(found[2]), group)
    if found := re.fullmatch(r"codebook([2-6])", name):
        return Codebook(int(found[1]))
    raise ValueError(f"{name[:40]!r} is no format that is known here")


NAMED: dict[str, Format] = {
    "int8": PerChannel(),
    **{f"int{bits}": Grouped(bits) for bits in (2, 3, 4, 5, 6)},
    "int4-asym": Grouped(4, symmetric=False),
    "w4a8": DualGrained(),
    "nf4": NormalFloat(),
    "e4m3": MiniFloat(4, 3),
    "e5m2": MiniFloat(5, 2),
    "e3m2": MiniFloat(3, 2, 32),
    "e2m3": MiniFloat(2, 3, 32),
    "e2m1": MiniFloat(2, 1, 32),
}
"""The usual settings of each, by short names."""


def row_error(form: Format, weight: Tensor) -> float:
    """Squared error over squared weight, of one weight [O,N]."""
    back = form.unpack(form.pack(weight), weight.shape[1])
    total = float(weight.float().square().sum())
    return float((back - weight.float()).square().sum()) / total if total else 0.0
