"""Packed linear layers through Triton's products: the same as unpacked, up to the roundings that the layer states."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from sfumato.kernels.quant import on_cuda
from sfumato.kernels.quant.activations import Activation
from sfumato.kernels.quant.formats import NAMED, Format
from sfumato.kernels.quant.integers import DualGrained, Grouped, PerChannel
from sfumato.kernels.quant.packed import packed
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SERVED: dict[str, tuple[Format, Activation | None]] = {
    "w4a16": (Grouped(4, 24), None),
    "w4a16 with zeros": (Grouped(4, 64, symmetric=False), None),
    "w8a8": (PerChannel(), Activation(8)),
    "w4a8": (DualGrained(24), Activation(8)),
}


@pytest.fixture(autouse=True)
def _in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(on_cuda, "usable", lambda x: x.dtype in (torch.float16, torch.bfloat16))


def layer(form: Format, activation: Activation | None, *, rank: int = 0, bias: bool = True) -> nn.Linear:
    rng = torch.Generator().manual_seed(0)
    made = nn.Linear(70, 50, bias=bias)
    made.weight.data = torch.randn(50, 70, generator=rng)
    beside = {"pre_quant_scale": torch.rand(70, generator=rng) + 0.5}
    if rank:
        beside |= {
            "low_down": torch.randn(rank, 70, generator=rng),
            "low_up": torch.randn(50, rank, generator=rng),
        }
    return packed(made, form, {**form.pack(made.weight.data), **beside}, activation)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SERVED)
def test_served(name: str, dtype: torch.dtype) -> None:
    form, activation = SERVED[name]
    for rank, bias in ((0, True), (5, False)):
        ours = layer(form, activation, rank=rank, bias=bias).to(DEVICE)
        x = torch.randn(2, 9, 70, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        wanted = ours(x)  # float32 takes no kernel
        half = ours.to(dtype)(x.to(dtype))
        assert half.dtype == dtype and on_cuda.product(ours, x.to(dtype)) is not None
        # 8 bits by token against 8 bits by picture: both are half a step from what was meant
        assert relative(half, wanted) < (0.015 if activation else 2e-3) + (
            1e-2 if dtype == torch.bfloat16 else 1e-3
        )


@pytest.mark.parametrize("name", ["nf4", "int3", "e4m3"])
def test_other_formats_unpack(name: str) -> None:
    ours = layer(NAMED[name], None).half().to(DEVICE)
    x = torch.randn(3, 70).to(DEVICE, torch.float16)
    assert on_cuda.product(ours, x) is None and ours(x).shape == (3, 50)


def test_the_branch_is_added_once() -> None:
    ours = layer(DualGrained(24), Activation(8), rank=5).half().to(DEVICE)
    x = torch.randn(4, 70).to(DEVICE, torch.float16)
    assert on_cuda.fuses(ours, x)
    without = layer(DualGrained(24), Activation(8)).half().to(DEVICE)
    branch = ours.branch(x / ours.pre_quant_scale)
    assert relative(ours(x) - without(x), branch) < 0.01


def test_outliers_are_heard() -> None:
    form = Grouped(4, 64)
    ours = layer(form, None)
    values = {
        "outlier_values": torch.full((50,), 9.0),
        "outlier_columns": torch.zeros(50, dtype=torch.int16),
        "outlier_rows": torch.arange(51, dtype=torch.int32),
    }
    plain = nn.Linear(70, 50)
    with_outliers = packed(plain, form, {**form.pack(plain.weight.data), **values}).half().to(DEVICE)
    x = torch.randn(3, 70).to(DEVICE, torch.float16)
    assert on_cuda.product(with_outliers, x) is None
    assert on_cuda.product(ours.half().to(DEVICE), x) is not None


@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("name", SERVED)
def test_compiled_code_takes_a_product_whole(name: str, rank: int) -> None:
    form, activation = SERVED[name]
    ours = layer(form, activation, rank=rank).to(DEVICE, torch.float16)
    x = torch.randn(2, 9, 70, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.float16)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert relative(compiled(x), ours(x)) < 2e-3
