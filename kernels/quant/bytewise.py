"""A weight in 8 bits with the kernel that multiplies it fastest here: our own in C++, or oneDNN's."""

from __future__ import annotations

from torch import Tensor

from ..native.around import available
from .fused import MEASURED, MOST_INPUTS, Matrix
from .int8 import Geometry, PackedConv, PackedLinear, Scale, Weight


class Bytewise:
    """Of a linear layer, or of a convolution with a geometry; inputs go by a known scale, or are measured.

    In C++ a linear layer measures each row, oneDNN's each picture; a convolution each picture.
    """

    def __init__(
        self,
        weight: Weight,
        bias: Tensor | None,
        geometry: Geometry | None = None,
        known: Scale | None = None,
    ) -> None:
        self.geometry = geometry
        whole = geometry is None or geometry.groups == 1
        self.product: Matrix | PackedLinear | PackedConv
        if available() is None and whole and weight.stored[0].numel() <= MOST_INPUTS:
            self.product = Matrix(weight, bias, known or MEASURED)
        elif geometry is None:
            self.product = PackedLinear(weight, bias, known)
        else:
            self.product = PackedConv(weight, bias, geometry, known)

    def __call__(self, x: Tensor) -> Tensor:
        """x [B,...,I] or [B,I,H,W] float32 -> [B,...,O] or [B,O,h,w]."""
        product = self.product
        if not isinstance(product, Matrix):
            return product(x)
        if self.geometry is None:
            out: Tensor = product(product.rows(x.reshape(-1, x.shape[-1])))
            return out.view(*x.shape[:-1], -1)
        out = product(product.windows(x, self.geometry.padding), self.geometry)
        return out.permute(0, 3, 1, 2)
