"""Winograd's convolution against torch's own."""

import pytest
import torch
from sfumato.kernels import winograd
from sfumato.kernels.native.around import After, Norm, available, finished, normed
from sfumato.kernels.winograd import WinogradConv2d
from torch.nn import functional as F


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 4), (2, 5, 7, 9), (1, 16, 1, 30), (3, 8, 33, 2), (1, 64, 17, 64)]
)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("block", [1, 100_000, winograd.BLOCK])
def test_is_torch(shape: tuple[int, ...], biased: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "BLOCK", block)
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(6, shape[1], 3, 3)
    bias = torch.randn(6) if biased else None
    ours = winograd.conv3x3(x, winograd.prepared(weight), bias)
    wanted = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    assert ours.shape == wanted.shape and ours.dtype == torch.float32
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-5


def test_layouts_and_views() -> None:
    torch.manual_seed(0)
    weight = winograd.prepared(torch.randn(4, 8, 3, 3))
    x = torch.randn(2, 8, 12, 20)
    wanted = winograd.conv3x3(x, weight, None)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(winograd.conv3x3(last, weight, None), wanted)
    wide = torch.randn(2, 8, 12, 40)
    wide[..., ::2] = x
    assert torch.equal(winograd.conv3x3(wide[..., ::2], weight, None), wanted)
    assert wanted.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_is_singles() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 16, 21, 13), winograd.prepared(torch.randn(24, 16, 3, 3))
    both = winograd.conv3x3(x, weight, None)
    for i in range(3):
        assert torch.equal(winograd.conv3x3(x[i : i + 1], weight, None), both[i : i + 1])


def layer(inputs: int, outputs: int) -> torch.nn.Conv2d:
    torch.manual_seed(1)
    return torch.nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)


needs_native = pytest.mark.skipif(available() is not None, reason=str(available()))


@needs_native
@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 4), (2, 5, 7, 9), (1, 16, 1, 30), (3, 70, 33, 2), (1, 64, 100, 64), (1, 200, 5, 5)]
)
def test_in_cpp_is_torch(shape: tuple[int, ...]) -> None:
    plain = layer(shape[1], 50)
    x = torch.randn(shape)
    wanted = plain.double()(x.double())
    ours = WinogradConv2d(plain.float())(x)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-5


@needs_native
@pytest.mark.parametrize("gate", ["none", "silu"])
@pytest.mark.parametrize("times", [1, 2])
def test_what_stands_around_it(gate: str, times: int) -> None:
    plain = layer(24, 40)
    x = (
        torch.randn(2, 24, 9, 6) * 3 + 100
    )  # far from zero: a variance from plain sums of squares would be wrong
    norm = Norm(4, torch.randn(24), torch.randn(24), 1e-5, gate)  # type: ignore[arg-type]
    shift, residual = torch.randn(2, 40), torch.randn(2, 40, 9 * times, 6 * times)
    y = plain(F.interpolate(normed(x, norm), scale_factor=float(times)))
    wanted = finished(y, After(shift=shift, residual=residual, factor=0.5))
    after = After(shift=shift, residual=residual.permute(0, 2, 3, 1), factor=0.5)
    ours = WinogradConv2d(plain).after(x, after, norm, times)
    assert float((ours - wanted).norm() / wanted.norm()) < 2e-5
    place = residual.permute(0, 2, 3, 1).contiguous()
    over = WinogradConv2d(plain).after(x, after._replace(residual=place, over=True), norm, times)
    assert over.data_ptr() == place.data_ptr() and torch.equal(over, ours)


@needs_native
def test_in_cpp_a_batch_is_its_singles_on_any_number_of_threads() -> None:
    ours, x = WinogradConv2d(layer(32, 48)), torch.randn(3, 32, 50, 37)
    norm = Norm(8, torch.ones(32), torch.zeros(32), 1e-5)
    whole = ours.after(x, norm=norm)
    assert torch.equal(whole, torch.cat([ours.after(one, norm=norm) for one in x.split(1)]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(whole, ours.after(x, norm=norm))
    finally:
        torch.set_num_threads(threads)
