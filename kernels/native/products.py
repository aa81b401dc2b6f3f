"""What a product in C++ is told, in 8 bits or in float32, and a linear layer around either."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from .around import PLAIN, After, Norm


class LayerNorm(NamedTuple):
    """A layer norm before a linear layer: an equal share of the rows has each of the G factors and shifts."""

    factor: Tensor | None
    """[G,I]"""
    shift: Tensor | None
    eps: float


class Product(ctypes.Structure):
    """As `Product` of products.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "weight_scale", "bias", "weight_sum")),
        *((name, ctypes.c_void_p) for name in ("scale", "zero", "shift", "gain", "residual", "out")),
        *((name, ctypes.c_int64) for name in ("pictures", "height", "width", "steps", "outputs")),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width", "taps_y", "taps_x")),
        *((name, ctypes.c_int64) for name in ("stride_y", "stride_x", "dilation_y", "dilation_x")),
        *((name, ctypes.c_int64) for name in ("gate", "halves", "share")),
        ("factor", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


class Matrix(Protocol):
    """A weight and its bias in the order in which a kernel reads them."""

    def rows(self, x: Tensor, norm: LayerNorm | None = None) -> Any:
        """x [M,I] as the product takes it, M pictures of a pixel, after the norm."""

    def pictures(self, x: Tensor, norm: Norm | None = None) -> Any:
        """x [B,I,H,W] as the product takes it, after the norm."""

    def __call__(self, x: Any, *, after: After = PLAIN, out: Tensor | None = None) -> Tensor:
        """-> [M,1,1,O] or [B,H,W,O] float32 (in `out`), or half the O with `after.halves`."""


class Linear(nn.Module):
    """x [...,I] float32 -> [...,O] float32, with something done to the product."""

    in_features: int
    out_features: int
    product: Any

    def after(self, x: Tensor, after: After = PLAIN) -> Tensor:
        """Only where the product is a `Matrix`."""
        if after.residual is not None:
            after = after._replace(residual=after.residual.reshape(-1, 1, 1, self.out_features))
        product: Matrix = self.product
        out = product(product.rows(x.reshape(-1, self.in_features)), after=after)
        return out.view(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
