"""Products in 8 bits in C++ against plain torch with the same roundings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sfumato.kernels.native.around import GATES, After, Gate, Norm, available, normed
from sfumato.kernels.quant import fused
from sfumato.kernels.quant.fused import LayerNorm, Matrix, stored_pictures, stored_rows
from sfumato.kernels.quant.int8 import Geometry, Weight, rounded, weight_of
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

FLOATS = 1e-6
"""Relative: both sides hold the same integers and differ in the order of float32 sums."""
TIES = 1e-3
"""Relative, where a value that lies between two steps may be rounded to either side."""


def given(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(ours: Tensor, wanted: Tensor) -> float:
    assert ours.shape == wanted.shape
    return float((ours - wanted).norm() / wanted.norm())


def layer(*shape: int) -> tuple[Weight, Tensor]:
    return weight_of(given(*shape, seed=1)), given(shape[0], seed=2)


def geometry(stride: int, padding: int, dilation: int) -> Geometry:
    return Geometry((stride, stride), (padding, padding), (dilation, dilation), 1)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 1, 1), (7, 13, 5), (130, 320, 640), (64, 1280, 48), (1000, 333, 77)]
)
def test_a_linear_layer_is_its_reference(rows: int, inputs: int, outputs: int) -> None:
    x, (weight, bias) = given(rows, inputs) * 3 + 1, layer(outputs, inputs)
    ours = Matrix(weight, bias)(stored_rows(x)).view(rows, outputs)
    assert error(ours, fused.rows_product(x, weight, bias)) < TIES


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("halves", [False, True])
def test_what_comes_after_a_product(gate: Gate, halves: bool) -> None:
    x, (weight, bias) = given(37, 64), layer(160, 64)
    residual = given(37, 80 if halves else 160, seed=3)
    shift = None if halves else given(37, 160, seed=4)
    wanted = fused.rows_product(x, weight, bias, After(gate, halves, shift, residual, 0.5))
    after = After(gate, halves, shift, residual.view(37, 1, 1, -1), 0.5)
    assert error(Matrix(weight, bias)(stored_rows(x), after=after).view(37, -1), wanted) < TIES


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize(("rows", "outputs"), [(1100, 200), (40, 400), (3, 16)])
def test_threads_share_the_work_and_change_nothing(threads: int, rows: int, outputs: int) -> None:
    """Rows of their own where there are many, else columns."""
    x, (weight, bias) = given(rows, 128), layer(outputs, 128)
    matrix, norm = Matrix(weight, bias), LayerNorm(None, None, 1e-5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = matrix(stored_rows(x, norm))
        torch.set_num_threads(threads)
        assert torch.equal(matrix(stored_rows(x, norm)), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "groups"), [(60, 1), (60, 3), (60, 60)])
def test_a_gain_that_rows_share(rows: int, groups: int) -> None:
    x, (weight, bias) = given(rows, 64), layer(80, 64)
    gain, residual = given(groups, 80, seed=3), given(rows, 80, seed=4)
    wanted = fused.rows_product(x, weight, bias, After(gain=gain, residual=residual))
    after = After(gain=gain, residual=residual.view(rows, 1, 1, -1))
    assert error(Matrix(weight, bias)(stored_rows(x), after=after).view(rows, -1), wanted) < TIES
    for wrong in (given(7, 80), given(1, 79)):
        with pytest.raises(ValueError, match=r"gain must be \[G,80\]"):
            Matrix(weight, bias)(stored_rows(x), after=After(gain=wrong))


@pytest.mark.parametrize(("rows", "features"), [(1, 16), (12, 77), (60, 320)])
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_a_layer_norm_goes_with_the_rounding(rows: int, features: int, groups: int) -> None:
    rows *= max(groups, 1)
    x, (weight, bias) = given(rows, features) * 2 + 5, layer(40, features)
    factor, shift = (given(groups, features, seed=s) + 1 if groups else None for s in (3, 4))
    found = stored_rows(x, LayerNorm(factor, shift, 1e-5))
    wanted = F.layer_norm(x, (features,), eps=1e-5)
    if factor is not None and shift is not None:
        each = rows // groups
        wanted = wanted * factor.repeat_interleave(each, 0) + shift.repeat_interleave(each, 0)
    ours = Matrix(weight, bias)(found).view(rows, -1)
    assert error(ours, fused.rows_product(wanted, weight, bias)) < 10 * TIES / features**0.5
    with pytest.raises(ValueError, match=f"{rows} rows can't share"):
        stored_rows(x, LayerNorm(given(rows + 1, features), None, 1e-5))


@pytest.mark.parametrize(
    ("size", "outputs", "kernel", "place"),
    [
        ((2, 32, 9, 7), 20, 3, (1, 1, 1)),
        ((1, 64, 16, 16), 64, 3, (2, 1, 1)),
        ((2, 13, 8, 8), 33, 1, (1, 0, 1)),
        ((2, 16, 12, 10), 48, 3, (1, 2, 2)),
        ((1, 8, 11, 11), 16, 5, (3, 2, 1)),
        ((1, 2560, 4, 4), 50, 3, (1, 1, 1)),  # its weights are multiplied in parts
    ],
)
def test_a_convolution_is_its_reference(
    size: tuple[int, int, int, int], outputs: int, kernel: int, place: tuple[int, int, int]
) -> None:
    x, (weight, bias), where = given(*size) * 2 + 1, layer(outputs, size[1], kernel, kernel), geometry(*place)
    plain = fused.product(x, weight, bias, where)
    shift, residual = given(size[0], outputs, seed=3), torch.randn_like(plain)
    wanted = fused.product(x, weight, bias, where, After("silu", False, shift, residual, 2.0))
    after = After("silu", False, shift, residual.permute(0, 2, 3, 1), 2.0)
    stored = stored_pictures(x, where.padding)
    ours = Matrix(weight, bias)(stored, where, after)
    assert error(ours.permute(0, 3, 1, 2), wanted) < TIES
    place = residual.permute(0, 2, 3, 1).contiguous()
    over = Matrix(weight, bias)(stored, where, after._replace(residual=place, over=True))
    assert torch.equal(over, ours) and over.data_ptr() == place.data_ptr()


@pytest.mark.parametrize("gate", ["none", "silu"])
@pytest.mark.parametrize("channels", [64, 24])
def test_a_norm_and_its_gate_before_a_convolution(gate: str, channels: int) -> None:
    x, (weight, bias) = given(2, channels, 19, 13) * 2 + 0.3, layer(40, channels, 3, 3)
    norm = Norm(8, given(channels, seed=3), given(channels, seed=4), 1e-5, gate)  # type: ignore[arg-type]
    where = geometry(1, 1, 1)
    ours = Matrix(weight, bias)(stored_pictures(x, (1, 1), norm), where).permute(0, 3, 1, 2)
    assert error(ours, fused.product(normed(x, norm), weight, bias, where)) < TIES


def test_the_scale_of_a_gated_norm_holds_its_least_value() -> None:
    """silu falls to -0.2785 between the ends of its range; the stored values must reach that far."""
    x = torch.linspace(-6, 6, 64 * 64).view(1, 1, 64, 64)
    norm = Norm(1, torch.ones(1), torch.zeros(1), 1e-5)
    found = stored_pictures(x, (0, 0), norm)
    real = found.scale[0] * (found.pixels[0, ..., 0].float() - found.zero[0])
    assert float((real - normed(x, norm)[0, 0]).abs().max()) <= 0.51 * float(found.scale[0])


def test_pixels_are_repeated_before_a_convolution() -> None:
    x, (weight, bias) = given(2, 16, 5, 7), layer(24, 16, 3, 3)
    ours = Matrix(weight, bias)(stored_pictures(x, (1, 1), times=2), geometry(1, 1, 1)).permute(0, 3, 1, 2)
    wanted = fused.product(F.interpolate(x, scale_factor=2.0), weight, bias, geometry(1, 1, 1))
    assert error(ours, wanted) < TIES


def test_a_batch_is_its_singles_and_threads_change_nothing() -> None:
    x, (weight, bias) = (
        given(3, 32, 17, 9) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1, 1),
        layer(50, 32, 3, 3),
    )
    norm = Norm(4, torch.ones(32), torch.zeros(32), 1e-5)
    matrix, where = Matrix(weight, bias), geometry(1, 1, 1)
    whole = matrix(stored_pictures(x, (1, 1), norm), where)
    singles = [matrix(stored_pictures(one, (1, 1), norm), where) for one in x.split(1)]
    assert torch.equal(whole, torch.cat(singles))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(whole, matrix(stored_pictures(x, (1, 1), norm), where))
    finally:
        torch.set_num_threads(threads)


def test_rows_of_any_stride_and_a_row_of_zeros() -> None:
    x, (weight, bias) = given(20, 96), layer(24, 48)
    x[3] = 0
    matrix = Matrix(weight, bias)
    for seen in (x[:, :48], x[::2, 48:], x.t()[:48, :20].t()):
        assert (
            error(matrix(stored_rows(seen)).view(len(seen), -1), fused.rows_product(seen, weight, bias))
            < TIES
        )
    assert torch.allclose(matrix(stored_rows(x[3:4, :48])).view(-1), bias)


def test_an_output_may_be_given() -> None:
    x, (weight, bias) = given(8, 16), layer(16, 16)
    out = torch.zeros(20, 16)
    Matrix(weight, bias)(stored_rows(x), out=out[4:12])
    assert error(out[4:12], fused.rows_product(x, weight, bias)) < FLOATS
    assert not out[:4].any() and not out[12:].any()


def test_what_cannot_be_is_refused() -> None:
    weight, bias = layer(16, 16)
    with pytest.raises(ValueError, match=r"a sum of 70000 products, more than 65000"):
        Matrix(weight_of(torch.ones(1, 70000)), None)
    rows = stored_rows(given(4, 16))
    with pytest.raises(ValueError, match=r"residual must be \[4, 1, 1, 16\]"):
        Matrix(weight, bias)(rows, after=After(residual=torch.zeros(4, 16)))
    with pytest.raises(ValueError, match=r"shift must be \[4,16\]"):
        Matrix(weight, bias)(rows, after=After(shift=torch.zeros(1, 16)))


def test_an_error_of_rounding_is_that_of_8_bits() -> None:
    """Rows of a normal law span about 6.5 deviations in 255 steps: an error of 0.7 percent, and the weight's beside."""
    x, w = given(200, 512), given(300, 512, seed=1)
    ours = Matrix(weight_of(w), None)(stored_rows(x)).view(200, 300)
    assert 0.005 < error(ours, x @ w.t()) < 0.015
    assert error(torch.cat([rounded(row) for row in x.split(1)]), x) < 0.01


def test_without_a_compiler_the_layers_take_torch_own_products(tmp_path: Path) -> None:
    code = (
        "import torch; from torch import nn; from sfumato.kernels.quant import layers\n"
        "from sfumato.kernels.native.around import available\n"
        "torch.manual_seed(0); plain = nn.Conv2d(8, 16, 3, padding=1); x = torch.randn(2, 8, 9, 9)\n"
        "layer = layers.int8(plain)\n"
        "print(available(), '|', type(layer.product).__name__, '|', float((layer(x) - plain(x)).abs().max()))"
    )
    told = {"PATH": "/nowhere", "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=told, check=True)
    lacking, kind, far = done.stdout.strip().split(" | ")
    assert "need a compiler" in lacking and kind == "PackedConv" and 0 < float(far) < 0.1
