"""Rounding column by column, each column's error made up for by those that come after it (GPTQ).

Paper: arXiv:2210.17323, section 3.3 and algorithm 1: with H = X^T X of the inputs X and U the upper Cholesky factor of
its inverse, column j's error goes to all later columns k by U[j,k] / U[j,j]. Scales are those of plain rounding,
taken beforehand. Columns come in the order of the diagonal of H, the greatest first. The paper has far more inputs than
columns; here H shrinks towards its diagonal by as much as so few of them call for (arXiv:0907.4698, eq. 23).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from .formats import Format
from .integers import Tensors

DAMP = 0.01
"""Of the mean diagonal of H, added to it."""
BLOCK = 128
"""Columns whose errors are gathered before the later ones are changed."""


class Stepped(Format, Protocol):
    """A format whose weights are whole numbers in -half..half times a step per row and column."""

    @property
    def half(self) -> int: ...

    def steps(self, tensors: Mapping[str, Tensor], count: int) -> Tensor:
        """[O,count], of packed tensors."""
        ...

    def coded(self, codes: Tensor) -> Tensor:
        """What is stored of whole numbers [O,N]."""
        ...


def pack_for(form: Stepped, weight: Tensor, rows: Tensor) -> Tensors:
    """The weight [O,N] in a format, rounded so that products with the rows [R,N] change little."""
    packed, count = form.pack(weight), weight.shape[1]
    h = _hessian(rows.to(weight.device))
    order = h.diagonal().argsort(descending=True)
    h = h[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    steps, w = form.steps(packed, count)[:, order], weight.float()[:, order]
    codes = torch.empty_like(w)
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        errors = torch.empty(len(w), end - begin, device=w.device)
        for j in range(begin, end):
            codes[:, j] = (w[:, j] / steps[:, j]).round().clamp(-form.half, form.half)
            errors[:, j - begin] = (w[:, j] - codes[:, j] * steps[:, j]) / upper[j, j]
            w[:, j + 1 : end] -= torch.outer(errors[:, j - begin], upper[j, j + 1 : end])
        w[:, end:] -= errors @ upper[begin:end, end:]
    return {**packed, "weight": form.coded(codes[:, order.argsort()])}


def _hessian(rows: Tensor) -> Tensor:
    """[N,N] of rows [R,N], float64."""
    h = (rows.T @ rows).double() / len(rows)
    h.diagonal().add_(DAMP * h.diagonal().mean().clamp_min(1e-12))
    size, scale = h.diagonal().clone(), h.diagonal().rsqrt()
    likeness = (h * scale * scale[:, None]).square().sum()
    n, count = len(rows), len(h)
    most = (n + 1 - 2 / count) * (likeness - count)
    share = ((1 - 2 / count) * likeness + count**2) / most.clamp_min(1e-12)
    h *= 1 - share.clamp(max=1)
    h.diagonal().copy_(size)
    return h
