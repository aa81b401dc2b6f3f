"""Linear layers in fp8 (e4m3) on both sides, a scale per token and per output channel.

On CUDA from compute capability 8.9 the product is torch's (`_scaled_mm`) where its sizes fit, else Triton's. Elsewhere
the same rounded numbers are multiplied in float32, which shows what it costs in accuracy and saves nothing but memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..triton_here import lacking
from .products import FP8, HALVES, Scaled, rows_of_fp8

CAPABILITY = (8, 9)
"""Of the first devices that multiply such numbers."""
EVEN = 16
"""What the sizes of torch's product must be multiples of."""


def product(x: Scaled, weight: Scaled, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x [...,K] by weight [N,K] -> [...,N]."""
    stored, scale = x.stored, x.scale
    if stored.device.type != "cuda" or torch.cuda.get_device_capability(stored.device) < CAPABILITY:
        return reference(x, weight, bias, dtype)
    even = all(size % EVEN == 0 for size in weight.stored.shape)
    if even and dtype == torch.bfloat16:  # scales of rows go with bfloat16 alone
        out: Tensor = torch._scaled_mm(
            stored.reshape(-1, stored.shape[-1]),
            weight.stored.T,
            scale_a=scale.reshape(-1, 1),
            scale_b=weight.scale[None],
            bias=None if bias is None else bias.bfloat16(),
            out_dtype=dtype,
        )
        return out.view(*stored.shape[:-1], -1)
    if dtype in HALVES and lacking() is None:
        from ..triton.scaled_product import product as scaled

        return scaled(stored, weight.stored, (scale, weight.scale), bias, dtype=dtype)
    return reference(x, weight, bias, dtype)


def reference(x: Scaled, weight: Scaled, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """In float32 on the rounded numbers."""
    rows = x.stored.float() * x.scale[..., None]
    out = F.linear(
        rows, weight.stored.float() * weight.scale[:, None], None if bias is None else bias.float()
    )
    return out.to(dtype)


class Fp8Linear(nn.Module):
    """x [...,I] -> [...,O] in x's own precision."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        stored, scale = rows_of_fp8(layer.weight.detach())
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        stored, scale = self.get_buffer("stored"), self.get_buffer("scale")
        return product(rows_of_fp8(x), Scaled(stored, scale.float()), self.bias, x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {FP8}"
