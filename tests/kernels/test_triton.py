"""Triton's kernels against plain torch: in the interpreter where there is no GPU, else on it."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")
from sfumato.kernels.attention import tiles
from sfumato.kernels.attention.call import Call, Preparation
from sfumato.kernels.attention.dense import reference as dense
from sfumato.kernels.quant import products
from sfumato.kernels.quant.integers import DualGrained, Grouped
from sfumato.kernels.triton import attention, four_bit, rows, scaled_product, sparse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning"
)  # of a sigmoid far below 0
HALVES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative (L2): one rounding of the output, and float32 sums in another order."""


def made(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=rng).to(DEVICE, dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 5, 16), (33, 130, 70), (70, 20, 129)])
def test_int8_by_int8(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, w = rows.quantised(made(m, k)), products.rows_of_8_bits(made(n, k, seed=1))
    bias = made(n, dtype=dtype)
    for given, activation in ((None, "none"), (bias, "gelu"), (bias, "silu")):
        ours = scaled_product.product(
            x.stored, w.stored, (x.scale, w.scale), given, activation=activation, dtype=dtype
        )
        wanted = products.scaled(x, w, given, activation)
        assert ours.dtype == dtype and relative(ours, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", HALVES)
def test_fp8_by_fp8(dtype: torch.dtype) -> None:
    x, w = made(2, 9, 70), made(40, 70, seed=1)
    left, right = products.rows_of_fp8(x), products.rows_of_fp8(w)
    ours = scaled_product.product(left.stored, right.stored, (left.scale, right.scale), dtype=dtype)
    assert ours.shape == (2, 9, 40)
    assert relative(ours, products.scaled(left, right)) < TOLERANCE[dtype]
    assert relative(ours, x @ w.T) < 0.05
    fused = rows.quantised(x, dtype=torch.float8_e4m3fn)
    torch.testing.assert_close(fused.scale, left.scale)
    wanted = left.stored.float()
    # the interpreter halves what rounds up to the next power of two
    carried = (wanted.frexp().mantissa.abs() == 0.5) & (wanted.abs() > (x / left.scale[..., None]).abs())
    kept = ~carried if DEVICE == "cpu" else torch.ones_like(carried)
    torch.testing.assert_close(fused.stored.float()[kept], wanted[kept], rtol=0, atol=0)


def test_rows_that_are_not_neighbours() -> None:
    wide = made(40, 3 * 64)
    x, w = rows.quantised(wide[:, 64:128]), products.rows_of_8_bits(made(30, 64))
    mixed = torch.empty(40, 128, dtype=torch.int8, device=DEVICE)[:, :64].copy_(x.stored)
    same = [
        scaled_product.product(part, w.stored, (x.scale, w.scale), dtype=torch.float32)
        for part in (x.stored, mixed, x.stored.T.contiguous().T)
    ]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    with pytest.raises(ValueError, match="must share type and K"):
        scaled_product.product(x.stored, w.stored[:, :32], (x.scale, w.scale))
    with pytest.raises(ValueError, match="must be one of none, silu, gelu"):
        scaled_product.product(x.stored, w.stored, (x.scale, w.scale), activation="tanh")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_rows_made_ready(dtype: torch.dtype) -> None:
    """Norm, positions, shift and divisor; a value that lies between two steps may go to either."""
    x = made(2, 37, 3, 24, dtype=dtype).transpose(1, 2)
    norm, shift, divisor = made(24).abs() + 0.5, made(2, 3, 24), made(24, seed=3).abs() + 0.5
    angle = made(37, 12)
    turns = {
        "pairs": rows.Turn(*(f(angle).repeat_interleave(2, 1) for f in (torch.cos, torch.sin)), "pairs"),
        "halves": rows.Turn(*(f(angle).repeat(1, 2) for f in (torch.cos, torch.sin)), "halves"),
    }
    for settings in (
        {},
        {"norm": norm},
        {"turn": turns["pairs"]},
        {"turn": turns["halves"], "norm": norm},
        {"shift": shift, "divisor": divisor},
        {"norm": norm, "turn": turns["pairs"], "shift": shift, "divisor": divisor},
    ):
        ours, wanted = rows.prepared(x, **settings), products.prepared(x, **settings)
        torch.testing.assert_close(ours.scale, wanted.scale, rtol=1e-5, atol=0)
        apart = (ours.stored.int() - wanted.stored.int()).abs()
        assert int(apart.max()) <= 1 and float(apart.float().mean()) < 1e-3


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("m", "n", "k", "group"), [(1, 20, 64, 64), (19, 70, 133, 24), (40, 33, 200, 128)])
def test_w4a16(m: int, n: int, k: int, group: int, dtype: torch.dtype, symmetric: bool) -> None:
    form, x, bias = Grouped(4, group, symmetric), made(m, k, dtype=dtype), made(n, dtype=dtype)
    stored = form.pack(made(n, k, seed=2))
    zero = stored.get("weight_zero")
    ours = four_bit.w4a16(x, stored["weight"], stored["weight_scale"], zero, bias, group=group)
    wanted = x.double() @ form.unpack(stored, k).double().T + bias.double()
    # the unpacked weight is rounded to half precision once more
    assert ours.dtype == dtype and relative(ours, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("rank", [0, 5, 32])
@pytest.mark.parametrize("dtype", HALVES)
def test_w4a8_and_its_branch(rank: int, dtype: torch.dtype) -> None:
    form, x, bias = DualGrained(24), made(2, 11, 133, dtype=dtype), made(50, dtype=dtype)
    stored = form.pack(made(50, 133, seed=2))
    weight = (stored["weight"], stored["weight_scale"], stored["weight_scale_2"])
    left = rows.quantised(x)
    branch = (made(2, 11, rank, dtype=dtype), made(50, rank, dtype=dtype)) if rank else None
    ours = four_bit.w4a8(left, weight, bias, branch=branch, group=24, activation="gelu", dtype=dtype)
    wanted = left.stored.double() * left.scale[..., None] @ form.unpack(stored, 133).double().T
    if branch is not None:
        wanted = wanted + branch[0].double() @ branch[1].double().T
    wanted = torch.nn.functional.gelu(wanted + bias.double(), approximate="tanh")
    assert ours.shape == (2, 11, 50) and relative(ours, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("queries", "keys", "features"), [(1, 1, 8), (70, 130, 40), (64, 65, 64)])
def test_attention(queries: int, keys: int, features: int, dtype: torch.dtype, fp8: bool) -> None:
    q = made(2, queries, 3, features, dtype=dtype).transpose(
        1, 2
    )  # features of a head are neighbours, heads are not
    k, v = (made(2, 3, keys, features, dtype=dtype, seed=s) for s in (1, 2))
    ours = attention.attend(q, k + 5, v, 0.2, fp8=fp8)
    assert ours.dtype == dtype
    assert relative(ours, dense(Call(q, k + 5, v, None, 0.2))) < (0.06 if fp8 else 0.03)


def test_attention_with_norm_and_positions() -> None:
    q, k, v = (made(1, 2, 33, 32, dtype=torch.float16, seed=s) for s in range(3))
    angle, weight = made(33, 16).repeat_interleave(2, 1), made(32).abs() + 0.5
    turn = rows.Turn(angle.cos(), angle.sin())
    left, right = (products.turned(products.normed(t.float(), weight), turn) for t in (q, k))
    both = Preparation((33,), ((weight, weight),), 1e-6, turn[:2])
    ours = attention.attend(q, k, v, 1 / math.sqrt(32), before=both)
    assert relative(ours, dense(Call(left, right, v.float()))) < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("tokens", [16, 70, 150])
def test_sparse(tokens: int, dtype: torch.dtype) -> None:
    q, k, v = (made(2, tokens, 2, 24, dtype=dtype, seed=s).transpose(1, 2) for s in range(3))
    kept = tiles.fewest(tiles.masses(q * 3, k, 16), 0.7)
    ours = sparse.attend_tiles(q, k, v, kept, 0.3, 16)
    assert relative(ours, tiles.reference(q, k, v, kept, 0.3, 16)) < TOLERANCE[dtype]
    if dtype == torch.float32:  # tiles of two parts, of which the last lies beyond the keys
        kept = tiles.fewest(tiles.masses(q * 3, k, 128), 0.7)
        ours = sparse.attend_tiles(q, k, v, kept, 0.3, 128)
        assert relative(ours, tiles.reference(q, k, v, kept, 0.3, 128)) < TOLERANCE[dtype]
    with pytest.raises(ValueError, match="16, 32, 64 or 128 tokens, got 24"):
        sparse.attend_tiles(q, k, v, kept, 0.3, 24)
