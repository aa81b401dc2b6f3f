"""Products of floats in C++ against torch's in double precision."""

from __future__ import annotations

import pytest
import torch
from sfumato.kernels.dense import DenseConv2d, DenseLinear, DenseMatrix, dense, layer_normed
from sfumato.kernels.native.around import GATES, After, Gate, Norm, available, finished, normed
from sfumato.kernels.native.products import LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

FLOATS = 2e-6
"""Relative."""


def given(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    return given(outputs, inputs, seed=1), given(outputs, seed=2)


def error(ours: Tensor, wanted: Tensor) -> float:
    assert ours.shape == wanted.shape and ours.dtype == torch.float32
    return float((ours - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        *((1, 1, 1), (7, 13, 5), (130, 320, 640), (64, 1280, 48), (1000, 333, 77), (4200, 64, 32)),
        *((9, 5120, 50), (20, 4608, 100), (8, 2 * 1031, 16)),  # inputs in parts; 1031 is a prime
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_is_torchs(rows: int, inputs: int, outputs: int, biased: bool) -> None:
    x, (weight, bias) = given(rows, inputs) + 1, layer(outputs, inputs)
    plain = nn.Linear(inputs, outputs, bias=biased)
    plain.weight.data = weight
    if biased:
        plain.bias.data = bias
    ours, wanted = (
        DenseLinear(plain),
        F.linear(x.double(), weight.double(), bias.double() if biased else None),
    )
    assert error(ours(x), wanted) < FLOATS
    assert torch.equal(ours(x.view(1, rows, inputs)), ours(x)[None])
    assert torch.equal(ours(x.repeat(1, 2)[:, :inputs]), ours(x)), "rows may lie apart"
    assert ours.product.parts == {5120: 5, 4608: 6, 1280: 2}.get(inputs, 1)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("inputs", [64, 2048])
def test_what_comes_after_a_product(gate: Gate, halves: bool, inputs: int) -> None:
    x, (weight, bias) = given(37, inputs) / inputs**0.5, layer(160, inputs)
    residual = given(37, 80 if halves else 160, seed=3)
    shift = None if halves else given(37, 160, seed=4)
    wanted = finished(F.linear(x, weight, bias), After(gate, halves, shift, residual, 0.5))
    after = After(gate, halves, shift, residual.view(37, 1, 1, -1), 0.5)
    matrix = DenseMatrix(weight, bias)
    ours = matrix(matrix.rows(x), after=after)
    assert error(ours.view(37, -1), wanted) < FLOATS
    over = matrix(matrix.rows(x), after=after._replace(over=True))
    assert torch.equal(over, ours) and over.data_ptr() == residual.data_ptr()


@pytest.mark.parametrize(("rows", "groups"), [(60, 1), (60, 3), (60, 60)])
def test_a_gain_that_rows_share_and_an_output_that_is_given(rows: int, groups: int) -> None:
    x, (weight, bias) = given(rows, 64), layer(80, 64)
    gain, residual = given(groups, 80, seed=3), given(rows, 80, seed=4)
    wanted = finished(F.linear(x, weight, bias), After(gain=gain, residual=residual))
    matrix, out = DenseMatrix(weight, bias), torch.empty(rows, 80)
    after = After(gain=gain, residual=residual.view(rows, 1, 1, -1))
    matrix(matrix.rows(x), after=after, out=out)
    assert error(out, wanted) < FLOATS
    for wrong in (given(7, 80), given(1, 79)):
        with pytest.raises(ValueError, match=r"gain must be \[G,80\]"):
            matrix(matrix.rows(x), after=After(gain=wrong))


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_a_layer_norm_before(groups: int) -> None:
    x = given(60, 77) * 2 + 5
    factor, shift = (given(groups, 77, seed=s) + 1 if groups else None for s in (3, 4))
    wanted = F.layer_norm(x, (77,), eps=1e-5)
    if factor is not None and shift is not None:
        wanted = wanted * factor.repeat_interleave(60 // groups, 0)
        wanted = wanted + shift.repeat_interleave(60 // groups, 0)
    assert error(layer_normed(x, LayerNorm(factor, shift, 1e-5)), wanted) < FLOATS
    weight, bias = layer(40, 77)
    matrix = DenseMatrix(weight, bias)
    ours = matrix(matrix.rows(x, LayerNorm(factor, shift, 1e-5))).view(60, 40)
    assert error(ours, F.linear(wanted, weight, bias)) < 2 * FLOATS


@pytest.mark.parametrize("last", [False, True])
def test_a_convolution_of_pixels_is_torchs(last: bool) -> None:
    plain, x = nn.Conv2d(48, 20, 1), given(2, 48, 9, 7)
    x = x.to(memory_format=torch.channels_last) if last else x
    residual, shift = given(2, 9, 7, 20, seed=3), given(2, 20, seed=4)
    with torch.no_grad():
        ours = dense(plain)
        assert isinstance(ours, DenseConv2d) and error(ours(x), plain(x)) < FLOATS
        wanted = finished(plain(x), After("silu", False, shift, residual.permute(0, 3, 1, 2), 2.0))
        assert error(ours.after(x, After("silu", False, shift, residual, 2.0)), wanted) < FLOATS
        norm = Norm(8, given(48, seed=5), given(48, seed=6), 1e-5)
        before = ours.product(ours.product.pictures(x, norm)).permute(0, 3, 1, 2)
        assert error(before, plain(normed(x, norm))) < FLOATS
    others = (nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1, groups=2), nn.SiLU())
    assert [dense(layer) for layer in others] == [None] * 4


@pytest.mark.parametrize(("rows", "outputs"), [(9000, 100), (40, 400), (3, 16)])
def test_a_batch_is_its_singles_and_threads_change_nothing(rows: int, outputs: int) -> None:
    x, matrix = given(rows, 2048), DenseMatrix(*layer(outputs, 2048))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = matrix(matrix.rows(x))
        torch.set_num_threads(3)
        assert torch.equal(matrix(matrix.rows(x)), alone)
        for i in (0, rows - 1):
            assert torch.equal(matrix(matrix.rows(x[i : i + 1])), alone[i : i + 1])
    finally:
        torch.set_num_threads(before)


def test_other_precisions_are_refused() -> None:
    ours = DenseLinear(nn.Linear(8, 4))
    for wrong in (torch.float64, torch.bfloat16):
        with pytest.raises(TypeError, match="are for float32"):
            ours(given(2, 8).to(wrong))
