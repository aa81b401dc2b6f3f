"""Previews: a linear decoder is found exactly, and clips work."""

from __future__ import annotations

import pytest
import torch
from sfumato.pipelines.preview import Projection
from torch.nn import functional as F


def decoder(latents):
    """Linear, 4 channels to RGB, 8 pixels a cell."""
    weights = torch.tensor([[0.1, 0.0, 0.05, 0.0], [0.0, 0.1, 0.0, 0.02], [0.03, 0.0, 0.0, 0.1]])
    rgb = torch.einsum("rc,bchw->brhw", weights, latents) + 0.5
    return F.interpolate(rgb, scale_factor=8, mode="nearest")


def test_fit_finds_a_linear_decoder():
    latents = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    got = Projection.fit(decoder, latents)(latents)
    want = (decoder(latents).clamp(0, 1) * 255).round().to(torch.uint8)
    assert got.shape == (3, 3, 48, 40) and got.dtype == torch.uint8
    assert (got.int() - want.int()).abs().max() <= 1


def test_clips_and_low_precision():
    projection = Projection(torch.eye(4, 3), torch.full((3,), 0.25), enlarge=2)
    got = projection(torch.zeros(1, 4, 5, 3, 2, dtype=torch.bfloat16))
    assert got.shape == (1, 3, 5, 6, 4) and (got == 64).all()


def test_errors():
    with pytest.raises(ValueError, match=r"matrix must be \[C,3\]"):
        Projection(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="enlarge must be 1 or more, got 0"):
        Projection(torch.zeros(4, 3), torch.zeros(3), enlarge=0)
