"""Winograd's convolution in 8 bits in C++: against plain torch with the same roundings, and what they cost."""

from __future__ import annotations

import pytest
import torch
from sfumato.kernels.native.around import After, Norm, available, finished, normed
from sfumato.kernels.quant import fused
from sfumato.kernels.quant.int8 import Geometry, weight_of
from sfumato.kernels.quant.winograd_int8 import Tiled, conv3x3
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

TIES = 1e-3
"""Relative, where a value that lies between two steps may be rounded to either side."""
SHAPES = [(1, 3, 4, 4), (2, 5, 7, 9), (1, 16, 1, 30), (3, 70, 33, 2), (1, 64, 100, 64), (1, 200, 5, 5)]


def error(ours: Tensor, wanted: Tensor) -> float:
    assert ours.shape == wanted.shape
    return float((ours - wanted).norm() / wanted.norm())


def layer(inputs: int, outputs: int) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outputs", [1, 50, 96])
def test_is_its_reference(shape: tuple[int, ...], outputs: int) -> None:
    plain, x = layer(shape[1], outputs), torch.randn(shape)
    ours = Tiled(plain.weight, plain.bias)(x)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert error(ours, conv3x3(x, plain.weight, plain.bias)) < TIES


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_its_error_is_little_more_than_without_tiles(mean: float) -> None:
    """1.5 to 1.9 times that of rounding what a convolution reads, about 1 %."""
    plain, x = layer(320, 64), torch.randn(1, 320, 24, 24) + mean
    wanted, geometry = plain(x), Geometry((1, 1), (1, 1), (1, 1), 1)
    direct = error(fused.product(x, weight_of(plain.weight), plain.bias, geometry), wanted)
    ours = error(Tiled(plain.weight, plain.bias)(x), wanted)
    assert ours < 2 * direct < 0.03


def test_a_great_channel_spoils_its_own_tiles_only() -> None:
    plain, x = layer(32, 32), torch.randn(1, 32, 16, 16)
    spoilt = x.clone()
    spoilt[0, 5, 0, 0] = 1000.0
    ours = Tiled(plain.weight, plain.bias)
    assert torch.equal(ours(spoilt)[..., 4:, :], ours(x)[..., 4:, :])


@pytest.mark.parametrize("gate", ["none", "silu"])
@pytest.mark.parametrize("times", [1, 2])
def test_what_stands_around_it(gate: str, times: int) -> None:
    plain, x = layer(24, 40), torch.randn(2, 24, 9, 6) * 3 + 100
    norm = Norm(4, torch.randn(24), torch.randn(24), 1e-5, gate)  # type: ignore[arg-type]
    shift, residual = torch.randn(2, 40), torch.randn(2, 40, 9 * times, 6 * times)
    read = F.interpolate(normed(x, norm), scale_factor=float(times))
    wanted = finished(
        conv3x3(read, plain.weight, plain.bias), After(shift=shift, residual=residual, factor=0.5)
    )
    after = After(shift=shift, residual=residual.permute(0, 2, 3, 1), factor=0.5)
    assert error(Tiled(plain.weight, plain.bias)(x, after, norm, times), wanted) < TIES


@pytest.mark.parametrize("shape", [(3, 32, 50, 37), (2, 1300, 6, 6)])
def test_a_batch_is_its_singles_on_any_number_of_threads(shape: tuple[int, ...]) -> None:
    plain, x = layer(shape[1], 200), torch.randn(shape)
    ours, channels = Tiled(plain.weight, plain.bias), shape[1]
    norm = Norm(4, torch.ones(channels), torch.zeros(channels), 1e-5)
    whole = ours(x, norm=norm)
    assert torch.equal(whole, torch.cat([ours(one, norm=norm) for one in x.split(1)]))
    threads = torch.get_num_threads()
    try:
        for count in (2, 3, 7, 16):
            torch.set_num_threads(count)
            assert torch.equal(whole, ours(x, norm=norm))
    finally:
        torch.set_num_threads(threads)


def test_layouts_and_views() -> None:
    plain, x = layer(8, 4), torch.randn(2, 8, 12, 20)
    ours = Tiled(plain.weight, None)
    wanted = ours(x)
    assert torch.equal(ours(x.contiguous(memory_format=torch.channels_last)), wanted)
    wide = torch.randn(2, 8, 12, 40)
    wide[..., ::2] = x
    assert torch.equal(ours(wide[..., ::2]), wanted)


def test_zeros_stay_zeros() -> None:
    ours = Tiled(torch.zeros(5, 4, 3, 3), None)
    assert not ours(torch.randn(1, 4, 6, 6)).any() and not ours(torch.zeros(1, 4, 6, 6)).any()
