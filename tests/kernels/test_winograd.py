"""Winograd's convolution against torch's own."""

import pytest
import torch
from sfumato.kernels import winograd
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
