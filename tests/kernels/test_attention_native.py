"""Attention in float32 in C++ against the dense reference in double precision, and what both kernels in C++ share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sfumato.kernels.attention import int8, native
from sfumato.kernels.attention.call import Call
from sfumato.kernels.attention.dense import reference
from sfumato.kernels.attention.dispatch import attention, refused
from torch import Tensor

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))


def made(q: tuple[int, ...], tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    k = (*q[:2], tokens, q[3])
    return torch.randn(q, generator=rng), torch.randn(k, generator=rng) + 1, torch.randn(k, generator=rng)


def off(out: Tensor, *given: Any) -> float:
    """From the reference, relative."""
    q, k, v, *rest = (t.double() if isinstance(t, Tensor) and t.dtype == torch.float32 else t for t in given)
    wanted = reference(Call(q, k, v, *rest))
    return float((out - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("tokens", [1, 5, 16, 77, 192, 193, 257, 700])
@pytest.mark.parametrize(
    "shape",
    [
        *((1, 1, 1, 1), (2, 3, 9, 40), (1, 2, 64, 64), (1, 1, 130, 80), (1, 2, 17, 128), (1, 5, 70, 24)),
        *((1, 1, 20, 160), (1, 1, 9, 8), (1, 2, 9, 72), (1, 1, 9, 200), (1, 1, 12, 512)),
    ],
)
def test_kernel_is_reference(shape: tuple[int, ...], tokens: int) -> None:
    q, k, v = made(shape, tokens)
    error = off(native.attend(q, k, v), q, k, v)
    assert error < 6e-6
    error = off(native.attend(q, k, v, 0.3), q, k, v, None, 0.3)
    assert error < 6e-6


@pytest.mark.parametrize("kernel", [native, int8])
def test_views_and_batches(kernel: Any) -> None:
    flat = torch.randn(2, 300, 3 * 4 * 40)
    q, k, v = (part.view(2, 300, 4, 40).transpose(1, 2) for part in flat.chunk(3, 2))
    both = kernel.attend(q, k, v)
    assert torch.equal(both, kernel.attend(q.contiguous(), k.contiguous(), v.contiguous()))
    for i in range(2):
        assert torch.equal(kernel.attend(q[i : i + 1], k[i : i + 1], v[i : i + 1]), both[i : i + 1])
    spread = torch.randn(1, 2, 40, 50).transpose(2, 3)  # features apart in memory
    error = off(kernel.attend(spread, spread, spread), spread, spread, spread)
    assert error < (6e-6 if kernel is native else 0.05)
    assert both.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("tokens", [77, 300, 9000])
@pytest.mark.parametrize("kernel", [native, int8])
def test_threads_share_the_work_and_change_nothing(kernel: Any, tokens: int) -> None:
    """9000 tokens of some heads are more than is held at once."""
    q, k, v = made((2, 3, 150, 40), tokens)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = kernel.attend(q, k, v)
        torch.set_num_threads(3)
        assert torch.equal(kernel.attend(q, k, v), alone)
    finally:
        torch.set_num_threads(before)
    error = off(alone, q, k, v)
    assert error < (6e-6 if kernel is native else 0.05)


@pytest.mark.parametrize("tokens", [5, 77, 450])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("axes", ["k", "bk", "b11k", "bh1k"])
def test_a_bias_by_keys(axes: str, dtype: torch.dtype, tokens: int) -> None:
    q, k, v = made((2, 3, 20, 24), tokens)
    rng = torch.Generator().manual_seed(1)
    bias = torch.randn(
        {"k": (tokens,), "bk": (1, tokens), "b11k": (2, 1, 1, tokens), "bh1k": (2, 3, 1, tokens)}[axes],
        generator=rng,
    )
    if dtype == torch.bool:
        bias = bias > 0
        bias[..., : tokens // 2] = False  # whole lots of keys are not seen
        bias[..., -1] = True
    error = off(attention(q, k, v, bias=bias, backend="native"), q, k, v, bias)
    assert error < 6e-6
    assert off(native.attend(q, k, v), q, k, v, bias) > 1e-3


def test_what_it_refuses() -> None:
    q, k, v = made((2, 3, 20, 24), 30)
    said = refused(Call(q, k, v, torch.zeros(2, 3, 20, 30)), "native")
    assert said is not None and "a mask by keys alone" in said
    assert (said := refused(Call(q.half(), k.half(), v.half()), "native")) is not None and "float32" in said
    grad = q.clone().requires_grad_()
    for name in ("native", "int8"):
        assert (said := refused(Call(grad, k, v), name)) is not None and "has no gradients" in said
        with torch.no_grad():
            assert refused(Call(grad, k, v), name) is None
    for bad in (
        (q.double(), k.double(), v.double()),
        (q, k[..., :8], v[..., :8]),
        (q, k[:, :, :0], v[:, :, :0]),
        (q, k, v, None, torch.zeros(3, 1, 30)),
        (q, k, v, None, torch.zeros(2, 3, 29)),
    ):
        with pytest.raises(ValueError, match="must be"):
            native.attend(*bad)


def test_extremes() -> None:
    zeros = torch.zeros(1, 1, 20, 16)
    assert torch.equal(native.attend(zeros, zeros, zeros), zeros)
    one = torch.randn(1, 1, 1, 16)
    torch.testing.assert_close(native.attend(one, one, one), one)
    q, k, v = made((1, 1, 40, 16), 600)
    loud = native.attend(q * 1e4, k * 1e4, v)  # each query sees one key
    assert off(loud, q * 1e4, k * 1e4, v) < 1e-5
