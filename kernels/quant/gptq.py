"""Rounding column by column, each column's error made up for by those that come after it (GPTQ).

Paper: arXiv:2210.17323, section 3.3 and algorithm 1: with H = X^T X of the inputs X and U the upper Cholesky factor of
its inverse, column j's error goes to all later columns k by U[j,k] / U[j,j]. Scales are those of plain rounding,
taken beforehand. Columns come in the order of the diagonal of H, the greatest first. The paper has far more inputs than
columns; here H shrinks towards its diagonal by as much as so few of them call for (arXiv:0907.4698, eq. 23). Of very
many columns those of one part make up for each other alone, so that H stays small.
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
MOST = 2048
"""Columns of a part; H of as many takes 34 MB."""


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
    steps, w, x = form.steps(packed, count), weight.float(), rows.to(weight.device)
    parts = [
        _codes(w[:, at : at + MOST], steps[:, at : at + MOST], x[:, at : at + MOST], form.half)
        for at in range(0, count, MOST)
    ]
    return {**packed, "weight": form.coded(torch.cat(parts, 1))}


def _codes(w: Tensor, steps: Tensor, rows: Tensor, half: int) -> Tensor:
    """Whole numbers [O,N] of weights and steps [O,N]."""
    h = _hessian(rows)
    order = h.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    w, steps, count = w.T[order], steps.T[order], len(order)  # a column is a row of these
    codes = torch.empty_like(w)
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        errors = torch.empty(end - begin, w.shape[1], device=w.device)
        for j in range(begin, end):
            codes[j] = (w[j] / steps[j]).round().clamp(-half, half)
            errors[j - begin] = (w[j] - codes[j] * steps[j]) / upper[j, j]
            w[j + 1 : end] -= torch.outer(upper[j, j + 1 : end], errors[j - begin])
        w[end:] -= upper[begin:end, end:].T @ errors
    return codes[order.argsort()].T


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
