"""Packed weights: bytes and back, error bounds in closed form, sizes as promised."""

import pytest
import torch
from sfumato.kernels.quant import bits
from sfumato.kernels.quant.codebook import Codebook
from sfumato.kernels.quant.floats import MiniFloat, NormalFloat, values
from sfumato.kernels.quant.formats import NAMED, bits_per_weight, format_of, row_error, spec_of
from sfumato.kernels.quant.int8 import restored
from sfumato.kernels.quant.integers import DualGrained, Grouped

EVERY = {**NAMED, "nf4-single": NormalFloat(32, False), "int6-asym": Grouped(6, 16, False)}
EVERY |= {"int7": Grouped(7, 24), "codebook3": Codebook(3), "e4m3-block": MiniFloat(4, 3, 32)}


def weights(rows: int, count: int, tail: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(rows, count, generator=generator)
    return w * (torch.randn(rows, count, generator=generator) * tail).exp()


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 33])
def test_bits(size: int, count: int) -> None:
    codes = torch.randint(2**size, (3, count), dtype=torch.uint8)
    packed = bits.pack(codes, size)
    assert packed.dtype == torch.int8 and packed.shape == (3, bits.width(count, size))
    assert torch.equal(bits.unpack(packed, size, count), codes)
    with pytest.raises(ValueError, match=r"in 1\.\.8"):
        bits.pack(codes, 9)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(1, 1), (5, 67), (16, 256)])
def test_every_format(name: str, shape: tuple[int, int]) -> None:
    form, w = EVERY[name], weights(*shape, tail=1.0)
    tensors = form.pack(w)
    assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == form.shapes(*shape)
    assert sum(t.nbytes for t in tensors.values()) * 8 == pytest.approx(
        bits_per_weight(form, *shape) * w.numel()
    )
    back = form.unpack(tensors, shape[1])
    assert back.shape == w.shape and back.dtype == torch.float32
    again = form.unpack(form.pack(back), shape[1])
    assert (again - back).square().mean() <= (back - w).square().mean()  # most of it has been rounded already
    assert format_of(spec_of(form)) == form
    zeros = torch.zeros(shape)
    assert torch.equal(form.unpack(form.pack(zeros), shape[1]), zeros)


@pytest.mark.parametrize("name", [n for n, f in EVERY.items() if not isinstance(f, Codebook | DualGrained)])
@pytest.mark.parametrize("tail", [0.0, 2.0])
@pytest.mark.parametrize("magnitude", [1.0, 1e-6])
def test_bounds(name: str, tail: float, magnitude: float) -> None:
    form, w = EVERY[name], weights(24, 200, tail) * magnitude
    tensors = form.pack(w)
    error, bound = (form.unpack(tensors, 200) - w).abs(), form.bound(tensors, w)  # type: ignore[attr-defined]
    assert (error <= bound).all()
    assert (error / bound).max() > 0.6  # no bound is idle


@pytest.mark.parametrize("tail", [0.0, 2.0])
def test_dual_grained_is_8_bits_too(tail: float) -> None:
    form, w = DualGrained(32), weights(24, 200, tail)
    tensors = form.pack(w)
    wide, back = form.widened(tensors, 200), form.unpack(tensors, 200)
    assert wide.stored.dtype == torch.int8 and torch.equal(restored(wide), back)
    error = torch.nn.functional.pad(back - w, (0, 24)).view(24, 7, 32).square().mean(2).sqrt()
    most = torch.nn.functional.pad(form.bound(tensors, w), (0, 24), mode="replicate").view(24, 7, 32)[..., 0]
    assert (error <= most).all()


@pytest.mark.parametrize("kind, mantissa", [(torch.float8_e4m3fn, 3), (torch.float8_e5m2, 2)])
def test_minifloats_are_torchs(kind: torch.dtype, mantissa: int) -> None:
    form = MiniFloat(7 - mantissa, mantissa)
    most = torch.finfo(kind).max
    x = torch.cat([weights(1, 4000, 3.0)[0].clamp(-most, most), torch.tensor([most, -most, 0.0])])[None]
    tensors = form.pack(x)
    assert tensors["weight_scale"].item() == 1.0
    assert torch.equal(tensors["weight"].view(kind).float().abs(), x.to(kind).float().abs())
    assert torch.equal(form.unpack(tensors, x.shape[1]), x.to(kind).float())


@pytest.mark.parametrize("name, most", [("e3m2", 28.0), ("e2m3", 7.5), ("e2m1", 6.0), ("e4m3", 448.0)])
def test_greatest_values(name: str, most: float) -> None:
    form = NAMED[name]
    assert isinstance(form, MiniFloat) and float(values(form.exponent, form.mantissa)[-1]) == most
    w = torch.tensor([[most, 1.0, -most, 0.5]])
    assert torch.equal(form.unpack(form.pack(w), 4), w)


def test_bits_per_weight() -> None:
    sizes = {name: round(bits_per_weight(form, 1024, 1024), 3) for name, form in NAMED.items()}
    assert sizes["int8"] == 8.031 and sizes["int4"] == 4.25 and sizes["int4-asym"] == 4.312
    assert (
        sizes["nf4"] == 4.127 and sizes["w4a8"] == 4.156 and sizes["e2m1"] == 4.25 and sizes["e3m2"] == 6.25
    )


def test_which_format_suits_what() -> None:
    """Normal weights: NF4 beats evenly spaced codes; heavy tails: floats beat whole numbers of as many bits."""
    normal, heavy = weights(64, 512), weights(64, 512, 1.5)
    assert row_error(NAMED["nf4"], normal) < row_error(NAMED["int4"], normal)
    assert row_error(NAMED["e4m3"], normal) > row_error(NAMED["int8"], normal)
    assert row_error(NAMED["e2m3"], normal) < row_error(NAMED["e3m2"], normal)
    small = lambda name: (  # noqa: E731
        (NAMED[name].unpack(NAMED[name].pack(heavy), 512) / heavy - 1).abs().median()
    )
    assert small("e4m3") < small("int8")


def test_a_codebook_learns() -> None:
    """Four values per row are found exactly; what counts more is met better."""
    table = torch.tensor([[-2.0, -0.5, 0.25, 3.0], [-1.0, 0.0, 0.5, 8.0]])
    w = table.gather(1, torch.randint(4, (2, 300)))
    form = Codebook(2)
    assert torch.equal(form.unpack(form.pack(w), 300), w)
    form, w, importance = Codebook(4), weights(8, 256), torch.ones(256)
    importance[:16] = 1000
    plain, weighed = (form.unpack(form.pack(w, counts), 256) - w for counts in (None, importance))
    assert weighed[:, :16].square().mean() < plain[:, :16].square().mean() / 2


@pytest.mark.parametrize(
    "spec", [{}, {"format": "int9_group"}, {"format": "e4m3", "group_size": "x"}, {"format": "int4_group"}]
)
def test_what_is_no_format(spec: dict) -> None:
    with pytest.raises(ValueError):
        format_of(spec)
