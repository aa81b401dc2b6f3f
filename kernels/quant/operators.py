"""Triton's products, callable from compiled code too, which takes each as one operator and does not look inside.

Compiled code is told what an operator gives by a form of it without numbers. Plain calls go straight to the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("sfumato::by_row", mutates_args=())
def _by_row(
    x: Tensor, weight: Tensor, x_scale: Tensor, w_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    from ..triton.scaled_product import product

    return product(x, weight, (x_scale, w_scale), bias, dtype=dtype)


@torch.library.custom_op("sfumato::w4a16", mutates_args=())
def _w4a16(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, group: int
) -> Tensor:
    from ..triton.four_bit import w4a16

    return w4a16(x, weight, scale, zero, bias, group=group)


@torch.library.custom_op("sfumato::w4a8", mutates_args=())
def _w4a8(
    x: list[Tensor],
    weight: list[Tensor],
    bias: Tensor | None,
    branch: list[Tensor],
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    from ..triton.four_bit import w4a8
    from ..triton.rows import Rows

    (stored, scale), (codes, steps, channels) = x, weight
    beside = (branch[0], branch[1]) if branch else None
    return w4a8(Rows(stored, scale), (codes, steps, channels), bias, branch=beside, group=group, dtype=dtype)


@_by_row.register_fake
def _(
    x: Tensor, weight: Tensor, x_scale: Tensor, w_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight), dtype=dtype)


@_w4a16.register_fake
def _(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, group: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@_w4a8.register_fake
def _(
    x: list[Tensor],
    weight: list[Tensor],
    bias: Tensor | None,
    branch: list[Tensor],
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    return x[0].new_empty(*x[0].shape[:-1], len(weight[0]), dtype=dtype)


def by_row(
    x: Tensor, weight: Tensor, scales: tuple[Tensor, Tensor], bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """x [...,K] and weight [N,K], both int8 or both fp8, scales [...] and [N] -> [...,N] of `dtype`."""
    if torch.compiler.is_compiling():
        return _by_row(x, weight, *scales, bias, dtype)
    from ..triton.scaled_product import product

    return product(x, weight, scales, bias, dtype=dtype)


def w4a16(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, group: int
) -> Tensor:
    """x [...,K] in half precision, codes [N,ceil(K/2)], scale [N,G], zero [N,ceil(G/2)] -> [...,N] like x."""
    if torch.compiler.is_compiling():
        return _w4a16(x, weight, scale, zero, bias, group)
    from ..triton.four_bit import w4a16 as kernel

    return kernel(x, weight, scale, zero, bias, group=group)


def w4a8(
    x: Tensor,
    weight: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    branch: tuple[Tensor, Tensor] | None,
    group: int,
) -> Tensor:
    """x [...,K] in half precision, codes, whole scales and scales -> [...,N] like x.

    `branch` is what the narrow side of a low-rank branch makes of x, [...,R], and its wide side [N,R].
    """
    if torch.compiler.is_compiling():
        from .products import rows_of_8_bits

        return _w4a8(
            [*rows_of_8_bits(x)], [*weight], bias, [] if branch is None else [*branch], group, x.dtype
        )
    from ..triton.four_bit import w4a8 as kernel
    from ..triton.rows import quantised

    return kernel(quantised(x), weight, bias, branch=branch, group=group, dtype=x.dtype)
