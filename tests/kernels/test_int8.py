"""Products in 8 bits: against the reference, and the reference against float32."""

import pytest
import torch
from sfumato.kernels.quant import int8
from sfumato.kernels.quant.int8 import Geometry, PackedConv, PackedLinear, Scale
from torch.nn import functional as F

pytestmark = pytest.mark.skipif(int8.available() is not None, reason=str(int8.available()))

GEOMETRIES = {
    "3x3": ((3, 3), Geometry((1, 1), (1, 1), (1, 1), 1)),
    "strided": ((3, 3), Geometry((2, 2), (1, 1), (1, 1), 1)),
    "1x1": ((1, 1), Geometry((1, 1), (0, 0), (1, 1), 1)),
    "odd": ((5, 3), Geometry((1, 2), (0, 3), (2, 1), 2)),
}


def near(ours: torch.Tensor, wanted: torch.Tensor, within: float = 1e-4) -> bool:
    """The integers are the same; sums in float32 come in another order."""
    return bool(((ours - wanted).abs() <= within * wanted.abs().max()).all())


@pytest.mark.parametrize("rows", [(1,), (7,), (3, 5), (2, 33)])
@pytest.mark.parametrize("features", [(1, 1), (13, 7), (64, 96)])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(rows: tuple[int, ...], features: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*rows, features[0]), int8.weight_of(torch.randn(features[1], features[0]))
    bias = torch.randn(features[1]) if biased else None
    ours = PackedLinear(weight, bias)(x)
    assert ours.shape == (*rows, features[1]) and ours.dtype == torch.float32
    assert near(ours, int8.linear(x, weight, bias))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("shape", [(1, 4, 9, 11), (2, 32, 16, 16)])
def test_conv(name: str, shape: tuple[int, ...]) -> None:
    size, geometry = GEOMETRIES[name]
    torch.manual_seed(0)
    weight = int8.weight_of(torch.randn(6, shape[1] // geometry.groups, *size))
    x, bias = torch.randn(shape) + 1, torch.randn(6)
    packed = PackedConv(weight, bias, geometry)
    assert near(packed(x), int8.conv(x, weight, bias, geometry))
    given = Scale(0.02, 40)  # too narrow: what lies beyond is clipped
    assert near(PackedConv(weight, bias, geometry, given)(x), int8.conv(x, weight, bias, geometry, given))
    flipped = x.flip(3)
    assert near(packed(flipped[..., ::2]), int8.conv(flipped[..., ::2], weight, bias, geometry))


def test_the_error_is_that_of_rounding() -> None:
    """Of uniform numbers: a 255th of the range, over the square root of 12, on each side of the product."""
    torch.manual_seed(0)
    x, w = torch.rand(512, 256), torch.rand(128, 256) * 2 - 1
    exact = F.linear(x, w)
    rms = lambda t: float(t.square().mean().sqrt())  # noqa: E731
    from_x = rms(w) / 255 / 12**0.5
    from_w = rms(x) / 127 / 12**0.5
    expected = (256 * (from_x**2 + from_w**2)) ** 0.5
    ours = int8.linear(x[None], int8.weight_of(w), None)[0]
    assert 0.8 < rms(ours - exact) / expected < 1.2


@pytest.mark.parametrize("low, high", [(0.0, 0.0), (1.0, 3.0), (-3.0, -1.0), (-1.0, 2.0), (-1e-30, 1e30)])
def test_zero_is_exact(low: float, high: float) -> None:
    scale = int8.scale_of(low, high)
    assert 0 <= scale.zero <= 255
    edges = torch.tensor([low, 0.0, high])
    back = int8.rounded(edges, scale)
    assert back[1] == 0 and torch.allclose(back, edges, atol=scale.scale * 0.51)


def test_a_channel_of_zeros() -> None:
    weight = int8.weight_of(torch.stack([torch.zeros(5), torch.ones(5)]))
    assert torch.equal(int8.restored(weight), torch.stack([torch.zeros(5), torch.ones(5)]))


def test_a_batch_is_singles() -> None:
    """To the bit, though the second is a hundred times as loud."""
    torch.manual_seed(0)
    rows, images = torch.randn(2, 9, 24), torch.randn(2, 8, 10, 10)
    linear = PackedLinear(int8.weight_of(torch.randn(16, 24)), torch.randn(16))
    conv = PackedConv(int8.weight_of(torch.randn(6, 8, 3, 3)), None, GEOMETRIES["3x3"][1])
    for product, x in ((linear, rows), (conv, images)):
        x[1] *= 100
        both = product(x)
        assert all(torch.equal(product(x[i : i + 1]), both[i : i + 1]) for i in range(2))
