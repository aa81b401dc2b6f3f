"""Layers with packed weights: against the plain layer with the weight that they stand for; what lies beside it."""

import copy

import pytest
import torch
from sfumato.kernels.dense import dense
from sfumato.kernels.native import around
from sfumato.kernels.quant import int8
from sfumato.kernels.quant.activations import Activation, activation_of
from sfumato.kernels.quant.formats import NAMED
from sfumato.kernels.quant.int8 import Scale, measured, rounded
from sfumato.kernels.quant.layers import int8 as int8_layer
from sfumato.kernels.quant.layers import untold
from sfumato.kernels.quant.packed import matrix, packable, packed
from sfumato.kernels.quant.stored import joined, low_rank, restored
from torch import nn

needs_int8 = pytest.mark.skipif(int8.available() is not None, reason=str(int8.available()))


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    found = {
        "linear": nn.Linear(72, 40),
        "bare": nn.Linear(13, 7, bias=False),
        "conv": nn.Conv2d(8, 6, 3, padding=1),
        "strided": nn.Conv2d(8, 6, (5, 3), (1, 2), (0, 3), (2, 1), groups=2),
    }
    return {name: layer.requires_grad_(False) for name, layer in found.items()}


def inputs(layer: nn.Module, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (9, layer.in_features) if isinstance(layer, nn.Linear) else (8, 10, 12)
    return torch.randn(batch, *shape, generator=generator)


def plain(layer: nn.Module, weight: torch.Tensor) -> nn.Module:
    """The layer with another weight."""
    other = copy.deepcopy(layer)
    other.weight = nn.Parameter(weight.view(layer.weight.shape), requires_grad=False)
    return other


@pytest.mark.parametrize("name", list(layers()))
@pytest.mark.parametrize("form", NAMED)
def test_weights_only(name: str, form: str) -> None:
    layer = layers()[name]
    ours = packed(layer, NAMED[form], NAMED[form].pack(matrix(layer)))
    assert type(layer) in type(ours).__mro__ and packable(layer) is layer and packable(ours) is None
    x, wanted = inputs(layer), plain(layer, ours.dense())
    assert torch.allclose(ours(x), wanted(x), atol=1e-5)
    assert ours(x.bfloat16()).dtype == torch.bfloat16 if ours.bias is None else True
    half = ours.bfloat16()
    assert torch.allclose(half(x.bfloat16()).float(), wanted(x), atol=0.1)


@pytest.mark.parametrize("name", list(layers()))
def test_through_a_checkpoint(name: str) -> None:
    layer = layers()[name]
    form = NAMED["int4-asym"]
    ours = packed(layer, form, form.pack(matrix(layer)), Activation(8, 0, Scale(0.03, 120)))
    again = restored(layer, ours.spec(), ours.tensors())
    assert torch.equal(again(inputs(layer)), ours(inputs(layer))) and again.spec() == ours.spec()
    for wrong in (
        {n: t for n, t in ours.tensors().items() if n != "weight_zero"},
        {**ours.tensors(), "other": torch.ones(1)},
        {**ours.tensors(), "weight": ours.tensors()["weight"][:1]},
        {**ours.tensors(), "low_up": torch.ones(1, 1)},
        {**ours.tensors(), "pre_quant_scale": torch.ones(3)},
    ):
        with pytest.raises(ValueError):
            restored(layer, ours.spec(), wrong)


@needs_int8
@pytest.mark.parametrize("name", list(layers()))
@pytest.mark.parametrize("form", ["int8", "w4a8"])
@pytest.mark.parametrize("scale", [None, Scale(0.03, 120)])
def test_products_in_8_bits(name: str, form: str, scale: Scale | None) -> None:
    """The same integers as the reference's; sums in another order."""
    layer = layers()[name]
    ours = packed(layer, NAMED[form], NAMED[form].pack(matrix(layer)), Activation(8, 0, scale))
    x = inputs(layer)
    by_row = isinstance(layer, nn.Linear) and around.available() is None  # oneDNN goes by picture
    read = rounded(x.flatten(0, -2), scale).view(x.shape) if by_row else rounded(x, scale)
    wanted = plain(layer, ours.dense())(read)
    assert torch.allclose(ours(x), wanted, atol=2e-3 * float(wanted.abs().max()))  # ties go to either side
    assert float((ours(x) - wanted).norm() / wanted.norm()) < 1e-3
    assert torch.equal(ours(x)[1:], ours(x[1:]))
    exchanged = int8_layer(ours)
    assert exchanged is not None and torch.equal(exchanged(x), ours(x))
    assert untold(ours) == ours.rows * ours.count  # held twice
    once = ours.bfloat16()(x.bfloat16()).float()  # not through that product
    assert torch.allclose(once, wanted, atol=0.15)


@needs_int8
@pytest.mark.parametrize("name", ["linear", "conv", "strided"])
def test_gradients_are_not_lost_silently(name: str) -> None:
    layer, x = layers()[name], inputs(layers()[name])
    forms = [
        int8_layer(layer),
        packed(layer, NAMED["int8"], NAMED["int8"].pack(matrix(layer)), Activation(8)),
    ]
    forms += [dense(layer)] if name == "linear" and around.available() is None else []
    for form in forms:
        assert form is not None
        with pytest.raises(TypeError, match="gives no gradients"):
            form(x.clone().requires_grad_(True))
        with torch.no_grad():
            assert not form(x.clone().requires_grad_(True)).requires_grad


def test_activations() -> None:
    x = inputs(layers()["linear"]) * torch.tensor([1.0, 100.0]).view(2, 1, 1)
    exact = torch.stack([rounded(row[None], measured(row))[0] for row in x])
    assert torch.allclose(Activation(8)(x, -1), exact, atol=1e-5 * 100)
    errors = [float((Activation(b, 24)(x, -1) - x).abs().max()) for b in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    x = x + 3 * x.abs()  # most of it above zero
    groups = x[1].unflatten(1, (3, 24))
    step = (groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0)) / 15
    off = (Activation(4, 24)(x, -1) - x)[1].unflatten(1, (3, 24)).abs().amax(2)
    assert (off <= step * 0.5001).all()
    images = inputs(layers()["conv"])
    assert torch.equal(
        Activation(4, 8)(images, 1), Activation(4, 8)(images.movedim(1, -1), -1).movedim(-1, 1)
    )
    for a in (Activation(4, 64), Activation(8, 0, Scale(0.5, 3))):
        assert activation_of(a.spec()) == a
    for wrong in ({}, {"bits": 9, "group_size": 0}, {"bits": 8, "group_size": 0, "scale": -1.0, "zero": 0}):
        with pytest.raises(ValueError):
            activation_of(wrong)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_what_lies_beside(name: str) -> None:
    layer = layers()[name]
    w, x = matrix(layer), inputs(layer)
    into, rows = (layer.in_features, layer.out_features) if name == "linear" else (8, 6)
    smooth = torch.rand(into) + 0.5
    spread = smooth.repeat_interleave(w.shape[1] // into)
    down, up = low_rank(w * spread, 2)
    form = NAMED["e4m3"]
    tensors = form.pack(w * spread - up @ down)
    ends = torch.tensor([0] + [1] * rows)
    outliers = {"outlier_rows": ends.int(), "outlier_columns": torch.tensor([3]).int()}
    beside = {"pre_quant_scale": smooth, "low_down": down, "low_up": up}
    ours = packed(layer, form, {**tensors, **beside, **outliers, "outlier_values": torch.tensor([9.0])})
    whole = ours.dense() + up @ down
    assert whole[0, 3] == 9 + (up @ down)[0, 3]
    wanted = plain(layer, whole / spread)(x)
    assert torch.allclose(ours(x), wanted, atol=1e-4)
    codes = ours.weight.clone()
    more_down, more_up = torch.randn(3, w.shape[1]), torch.randn(rows, 3)
    joined(ours, more_down, more_up)
    wanted = plain(layer, whole / spread + more_up @ more_down)(x)
    assert torch.equal(ours.weight, codes) and torch.allclose(ours(x), wanted, atol=1e-3)
    assert torch.allclose(restored(layer, ours.spec(), ours.tensors())(x), ours(x))


def test_noise_and_the_first_token_cancel() -> None:
    """Without rounding of the input both change nothing."""
    layer = layers()["linear"]
    x, form = inputs(layer), NAMED["int8"]
    tensors = form.pack(matrix(layer))
    bare = packed(layer, form, tensors)
    noise, first = torch.rand(72), x[0, 0].clone()
    beside = {"input_noise": noise, "noise_output": bare.dense() @ noise}
    assert torch.allclose(packed(layer, form, {**tensors, **beside})(x), bare(x), atol=1e-5)
    beside = {"first_input": first, "first_output": matrix(layer) @ first}
    ours = packed(layer, form, {**tensors, **beside}, Activation(4))
    assert torch.allclose(
        ours(x)[0, 0], layer(x)[0, 0], atol=1e-5
    )  # as in full precision, whatever the rest is


@pytest.mark.parametrize("shape", [(30, 50), (1100, 1200)])
def test_low_rank(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape[0], 4) @ torch.randn(4, shape[1])
    before = torch.get_rng_state()
    down, up = low_rank(w, 4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.allclose(up @ down, w, atol=1e-3) and torch.equal(low_rank(w, 4)[0], down)
    assert low_rank(w, 0)[0].shape == (0, shape[1])
