"""Linear layers in 8 bits by row: near the layer they were made from, in every precision, the same rows in any batch,
whole in compiled code, and with shapes that torch's product on a GPU takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sfumato.kernels.quant import by_row
from sfumato.kernels.quant.by_row import ByRowLinear, by_torch, reference
from sfumato.kernels.quant.products import FP8, Scaled, rows_of_8_bits, rows_of_fp8, scaled
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

KINDS = {"int8": (torch.int8, 2e-3, 0.015), "fp8": (FP8, 1e-3, 0.06)}
"""Seven bits and a sign, or three bits of mantissa, on both sides."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 33), (2, 5, 64)])
def test_layer(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    stored, least, most = KINDS[kind]
    torch.manual_seed(0)
    layer = nn.Linear(shape[-1], 48, bias=len(shape) == 2).to(dtype)
    x = torch.randn(shape).to(dtype)
    ours, wanted = ByRowLinear(layer, stored), layer(x)
    out = ours(x)
    assert out.dtype == dtype and out.shape == wanted.shape
    error = (out - wanted).detach()
    assert least < float(error.float().norm() / wanted.detach().float().norm()) < most
    held = sum(t.numel() * t.element_size() for t in ours.state_dict().values())
    assert held < 0.6 * sum(t.numel() * 2 for t in layer.state_dict().values()) + 4 * 48
    for i in range(len(x)):
        torch.testing.assert_close(ours(x[i : i + 1]), out[i : i + 1])
    again = ByRowLinear(nn.Linear(shape[-1], 48, bias=layer.bias is not None), stored)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(x), out)


def test_reference_is_the_exact_product_of_the_rounded() -> None:
    torch.manual_seed(0)
    bias = torch.randn(20)
    for rows in (rows_of_fp8, rows_of_8_bits):
        x, w = rows(torch.randn(9, 40)), rows(torch.randn(20, 40))
        ours = reference(x, w, bias, torch.float32)
        torch.testing.assert_close(ours.double(), scaled(x, w, bias), rtol=1e-5, atol=1e-5)
        assert torch.equal(reference(rows(torch.zeros(2, 40)), w, None, torch.float32), torch.zeros(2, 20))


def test_tokens_in_any_layout_fit_the_product_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch checks sizes, types and strides of a GPU's product without one."""
    checked = []
    multiply = torch._scaled_mm

    def on_a_gpu(a: torch.Tensor, b: torch.Tensor, **beside: Any) -> torch.Tensor:
        with FakeTensorMode():
            tensors = [a, b, *(beside[name] for name in ("scale_a", "scale_b", "bias"))]
            a, b, scale_a, scale_b, bias = (
                torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in tensors
            )
            beside |= {"scale_a": scale_a, "scale_b": scale_b, "bias": bias}
            out = multiply(a, b, **beside)
        checked.append(out.shape)
        return torch.zeros(out.shape, dtype=out.dtype)

    monkeypatch.setattr(torch, "_scaled_mm", on_a_gpu)
    weight, bias = rows_of_fp8(torch.randn(48, 64)), torch.ones(48, dtype=torch.float16)
    rows, pixels = torch.randn(2, 6, 64).bfloat16(), torch.randn(1, 64, 6).bfloat16().transpose(1, 2)
    for x in (rows, pixels, rows[:1].expand(3, 6, 64), pixels.transpose(0, 1), rows.transpose(0, 1)):
        out = by_torch(rows_of_fp8(x), weight, bias)
        assert out.shape == (*x.shape[:-1], 48) and out.dtype == torch.bfloat16
    assert checked == [(12, 48), (6, 48), (18, 48), (6, 48), (12, 48)]


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_code_takes_a_product_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(by_row, "lacking", lambda: None)
    layer = ByRowLinear(nn.Linear(40, 24).half(), KINDS[kind][0])
    x = torch.randn(2, 5, 40).half()
    plain = layer(x)
    layer.here = True
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert float((compiled(x) - plain).float().norm() / plain.float().norm()) < 2e-3


def test_a_layer_that_moves_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ByRowLinear(nn.Linear(16, 16), torch.int8)
    assert not layer.here
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert by_row.multiplies(torch.empty(1, device="cuda").device, torch.int8)
        assert not by_row.multiplies(torch.empty(1, device="cuda").device, FP8)
    layer.here = True
    assert not layer.half().here
    assert isinstance(by_row.rounded(torch.ones(2, 16), torch.int8, True), Scaled)
