"""Linear layers in 8 bits on both sides, int8 or fp8 (e4m3), a scale per token and per output channel.

On CUDA the products are in 8 bits: int8 from compute capability 8.0 by Triton's kernel, fp8 from 8.9 by torch's own
(`_scaled_mm`) where its sizes fit, else by Triton's. Tokens are rounded in one pass: by Triton's kernel, or in compiled
code together with what stands before. Elsewhere the same rounded numbers are multiplied in float32, which shows what it
costs in accuracy and saves nothing but memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..steady import one_by_one
from ..triton_here import lacking
from . import operators
from .products import FP8, HALVES, Scaled, rows_of_8_bits, rows_of_fp8

CAPABILITY = {torch.int8: (8, 0), FP8: (8, 9)}
"""Of the first devices that multiply such numbers."""
EVEN = 16
"""What the sizes of torch's product must be multiples of."""


def multiplies(device: torch.device, kind: torch.dtype) -> bool:
    """Whether the device has products of these numbers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY[kind]


def rounded(x: Tensor, kind: torch.dtype, here: bool) -> Scaled:
    """x [...,K] by token. `here` says whether its device multiplies such numbers."""
    if here and x.dtype in HALVES and lacking() is None and not torch.compiler.is_compiling():
        from ..triton.rows import quantised

        return Scaled(*quantised(x, dtype=kind))
    return rows_of_fp8(x) if kind == FP8 else rows_of_8_bits(x)


def product(x: Scaled, weight: Scaled, bias: Tensor | None, dtype: torch.dtype, here: bool) -> Tensor:
    """x [...,K] by weight [N,K] -> [...,N]."""
    if not here or dtype not in HALVES:
        return reference(x, weight, bias, dtype)
    even = all(size % EVEN == 0 for size in weight.stored.shape)
    if (
        weight.stored.dtype == FP8 and even and dtype == torch.bfloat16
    ):  # scales of rows go with bfloat16 alone
        return by_torch(x, weight, bias)
    if lacking() is None:
        return operators.by_row(x.stored, weight.stored, (x.scale, weight.scale), bias, dtype)
    return reference(x, weight, bias, dtype)


def by_torch(x: Scaled, weight: Scaled, bias: Tensor | None) -> Tensor:
    """In fp8, to bfloat16. Sums are kept as the tensor cores keep them, which costs less than the rounding did."""
    flat = x.stored.reshape(-1, x.stored.shape[-1]).contiguous()
    out: Tensor = torch._scaled_mm(
        flat,
        weight.stored.t(),
        scale_a=x.scale.reshape(-1, 1).contiguous(),
        scale_b=weight.scale.reshape(1, -1),
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return out.view(*x.stored.shape[:-1], -1)


def reference(x: Scaled, weight: Scaled, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """In float32 on the rounded numbers."""
    rows = x.stored.float() * x.scale.unsqueeze(-1)
    wide = weight.stored.float() * weight.scale.unsqueeze(-1)
    return F.linear(rows, wide, None if bias is None else bias.float()).to(dtype)


class ByRowLinear(nn.Module):
    """x [...,I] -> [...,O] in x's own precision. `kind` is int8 or fp8."""

    def __init__(self, layer: nn.Linear, kind: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        stored, scale = (rows_of_fp8 if kind == FP8 else rows_of_8_bits)(layer.weight.detach())
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        self.kind = kind
        self.here = multiplies(stored.device, kind)

    def forward(self, input: Tensor) -> Tensor:
        weight = Scaled(self.get_buffer("stored"), self.get_buffer("scale").float())

        def multiplied(x: Tensor) -> Tensor:
            return product(rounded(x, self.kind, self.here), weight, self.bias, x.dtype, self.here)

        return multiplied(input) if self.here else one_by_one(multiplied, input)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ByRowLinear:
        """torch's own way of moving a module; asked here, since compiled code can't ask a device what it can."""
        super()._apply(fn, recurse)
        self.here = multiplies(self.get_buffer("stored").device, self.kind)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.kind}"
