"""Linear layers in fp8: near the layer they were made from, in every precision, and the same rows in any batch."""

from __future__ import annotations

import pytest
import torch
from sfumato.kernels.quant.fp8 import Fp8Linear, reference
from sfumato.kernels.quant.products import rows_of_fp8, scaled
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 33), (2, 5, 64)])
def test_layer(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(shape[-1], 48, bias=len(shape) == 2).to(dtype)
    x = torch.randn(shape).to(dtype)
    ours, wanted = Fp8Linear(layer), layer(x)
    out = ours(x)
    assert out.dtype == dtype and out.shape == wanted.shape
    error = float((out - wanted).float().norm() / wanted.float().norm())
    assert 1e-3 < error < 0.06, "three bits of mantissa on both sides"
    held = sum(t.numel() * t.element_size() for t in ours.state_dict().values())
    assert held < 0.6 * sum(t.numel() * 2 for t in layer.state_dict().values()) + 4 * 48
    for i in range(len(x)):
        torch.testing.assert_close(ours(x[i : i + 1]), out[i : i + 1])
    again = Fp8Linear(nn.Linear(shape[-1], 48, bias=layer.bias is not None))
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(x), out)


def test_reference_is_the_exact_product_of_the_rounded() -> None:
    torch.manual_seed(0)
    x, w, bias = rows_of_fp8(torch.randn(9, 40)), rows_of_fp8(torch.randn(20, 40)), torch.randn(20)
    torch.testing.assert_close(
        reference(x, w, bias, torch.float32).double(), scaled(x, w, bias), rtol=1e-5, atol=1e-5
    )
    zeros = rows_of_fp8(torch.zeros(2, 40))
    assert torch.equal(reference(zeros, w, None, torch.float32), torch.zeros(2, 20))
