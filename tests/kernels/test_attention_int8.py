"""Attention in 8 bits: the kernel against its reference, the reference against exact attention."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from sfumato.kernels.attention import int8
from sfumato.kernels.native.library import library
from torch.nn.functional import scaled_dot_product_attention as exact

needs_kernel = pytest.mark.skipif(int8.available() is not None, reason=str(int8.available()))


def made(q: tuple[int, ...], tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    k = (*q[:2], tokens, q[3])
    return torch.randn(q, generator=rng), torch.randn(k, generator=rng) + 1, torch.randn(k, generator=rng)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@needs_kernel
@pytest.mark.parametrize("tokens", [1, 5, 77, 256, 257, 700])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 9, 40), (1, 2, 64, 64), (1, 1, 130, 80), (1, 2, 17, 128)]
)
def test_kernel_is_reference(shape: tuple[int, ...], tokens: int) -> None:
    """Up to weights that lie between two of 255 steps, and the kernel's 2^x."""
    q, k, v = made(shape, tokens)
    assert relative(int8.attend(q, k, v), int8.reference(q, k, v)) < 4e-3
    assert relative(int8.attend(q, k, v, 0.3), int8.reference(q, k, v, 0.3)) < 4e-3


@pytest.mark.parametrize("tokens", [64, 1024])
def test_reference_is_near_attention(tokens: int) -> None:
    q, k, v = made((1, 2, 128, 64), tokens)
    assert relative(int8.reference(q, k, v), exact(q, k, v)) < 0.05
    sharp = relative(int8.reference(8 * q, k, v), exact(8 * q, k, v))
    assert sharp < 0.05


@pytest.mark.parametrize("attend", [int8.reference, pytest.param(int8.attend, marks=needs_kernel)])
@pytest.mark.parametrize(("kind", "most"), [("runs", 0.03), ("scattered", 0.04), ("sharper", 0.03)])
def test_tokens_in_clusters(attend: Any, kind: str, most: float) -> None:
    """Where one scale for all keys is coarse, and many small weights that are rounded away would be missed."""
    rng = torch.Generator().manual_seed(1)
    q, k, v = made((1, 2, 256, 40), 2048)
    if kind == "sharper":
        q = 2 * q
    else:
        centres = 2 * torch.randn(1, 2, 16, 40, generator=rng).repeat_interleave(128, 2)
        order = torch.randperm(2048, generator=rng) if kind == "scattered" else torch.arange(2048)
        q, k = q + centres[:, :, ::8], k + centres[:, :, order]
    assert relative(attend(q, k, v), exact(q, k, v)) < most


@needs_kernel
@pytest.mark.parametrize("scale", [-0.2, 0.0, 1e-12])
@pytest.mark.parametrize("tokens", [77, 300])
def test_any_scale(tokens: int, scale: float) -> None:
    q, k, v = made((2, 3, 9, 40), tokens)
    assert relative(int8.attend(q, k, v, scale), exact(q, k, v, scale=scale)) < 0.02
    assert relative(int8.attend(scale * q, k, v, 1.0), exact(scale * q, k, v, scale=1.0)) < 0.02


@pytest.mark.parametrize("attend", [int8.reference, pytest.param(int8.attend, marks=needs_kernel)])
def test_a_key_far_from_the_others_costs_them_nothing(attend: Any) -> None:
    """As the first token of a text has. With one scale for all keys the others would be lost."""
    q, k, v = made((1, 2, 64, 40), 77)
    k = k - 1
    k[:, :, 0] *= 200
    mean = k.mean(2, keepdim=True)
    one_scale = (k - mean).abs().amax((2, 3), keepdim=True) / 127
    rounded = ((k - mean) / one_scale).round() * one_scale
    assert relative(exact(q, rounded, v), exact(q, k, v)) > 0.1
    assert relative(attend(q, k, v), exact(q, k, v)) < 0.02


def test_the_mean_of_the_keys_costs_nothing() -> None:
    q, k, v = made((1, 1, 64, 32), 200)
    k = (k * 1024).round() / 1024  # keeps every bit beside 100
    assert relative(int8.reference(q, k + 100, v), int8.reference(q, k, v)) < 1e-3


@needs_kernel
def test_extremes() -> None:
    zeros = torch.zeros(1, 1, 20, 16)
    assert torch.equal(int8.attend(zeros, zeros, zeros), zeros)
    one = torch.randn(1, 1, 1, 16)
    torch.testing.assert_close(int8.attend(one, one, one), one, atol=0.02, rtol=0.02)
    q, k, v = made((1, 1, 40, 16), 600)
    loud = int8.attend(q * 1e4, k * 1e4, v)
    assert bool(loud.isfinite().all()) and float(loud.abs().max()) <= float(v.abs().max()) * 1.01
    for bad in (
        (q.double(), k.double(), v.double()),
        (q, k[..., :8], v[..., :8]),
        (q, k[:, :, :0], v[:, :, :0]),
    ):
        with pytest.raises(ValueError, match="must be"):
            int8.attend(*bad)


def test_a_machine_without_a_compiler_says_so() -> None:
    code = "from sfumato.kernels.native.library import library; print(library().lacking)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "/nowhere"}
    )
    assert done.returncode == 0, done.stderr
    assert "need a" in done.stdout or "are for Linux" in done.stdout


def test_the_library_is_loaded_once() -> None:
    assert library() is library()
