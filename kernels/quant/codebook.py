"""Weights as codes into a table per output channel, found by weighted k-means (arXiv:2306.07629, eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import bits as bytes_of
from .int8 import Weight
from .integers import Shapes, Tensors

ROUNDS = 20
"""Of Lloyd's algorithm; on lines of numbers it hardly moves after ten."""


@dataclass(frozen=True)
class Codebook:
    """2**bits values in bfloat16 per channel."""

    bits: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 6:
            raise ValueError(f"bits must be in 2..6, got {self.bits}")

    @property
    def name(self) -> str:
        return f"codebook{self.bits}"

    def pack(self, weight: Tensor, importance: Tensor | None = None) -> Tensors:
        """`importance` [O,N] or [N], 0 and up, is what a squared error of each weight counts; 1 if not given."""
        w = weight.float()
        counts = torch.ones_like(w) if importance is None else importance.float().expand_as(w)
        table = self._start(w)
        for _ in range(ROUNDS):
            nearest = self._nearest(w, table)
            mass = torch.zeros_like(table).scatter_add_(1, nearest, counts)
            sums = torch.zeros_like(table).scatter_add_(1, nearest, counts * w)
            table = torch.where(mass > 0, sums / mass.clamp(min=1e-30), table)
            table = self._filled(w, counts, table, mass == 0).sort(1).values
        table = table.bfloat16()
        codes = self._nearest(w, table.float()).to(torch.uint8)
        return {"weight": bytes_of.pack(codes, self.bits), "weight_table": table}

    def _start(self, w: Tensor) -> Tensor:
        """Half of the table at quantiles, half evenly over the range: neither the middle nor the ends go without."""
        size = 2**self.bits
        even = torch.linspace(0, 1, size // 2, device=w.device)
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        at = ((torch.arange(size // 2, device=w.device) + 0.5) / (size // 2) * w.shape[1]).long()
        return torch.cat([low + even * (high - low), w.sort(1).values[:, at]], 1).sort(1).values

    def _filled(self, w: Tensor, counts: Tensor, table: Tensor, idle: Tensor) -> Tensor:
        """One value that no weight is nearest to goes where the error counts most."""
        rising = table.sort(1).values
        worst = ((w - rising.gather(1, self._nearest(w, rising))).square() * counts).argmax(1, keepdim=True)
        first = idle & (idle.cumsum(1) == 1)
        return torch.where(first, w.gather(1, worst), table)

    def _nearest(self, w: Tensor, table: Tensor) -> Tensor:
        return torch.searchsorted(((table[:, 1:] + table[:, :-1]) / 2).contiguous(), w.contiguous())

    def unpack(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        codes = bytes_of.unpack(tensors["weight"], self.bits, count).long()
        return tensors["weight_table"].float().gather(1, codes)

    def shapes(self, rows: int, count: int) -> Shapes:
        return {
            "weight": ((rows, bytes_of.width(count, self.bits)), torch.int8),
            "weight_table": ((rows, 2**self.bits), torch.bfloat16),
        }

    def widened(self, tensors: Mapping[str, Tensor], count: int) -> Weight | None:
        return None
