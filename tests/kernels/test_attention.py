"""The door to attention: every backend against the dense reference, what each refuses, what auto picks and keeps."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from sfumato.kernels.attention import choice, int8, linear, tiles
from sfumato.kernels.attention.call import Backend, Call
from sfumato.kernels.attention.dense import reference
from sfumato.kernels.attention.dispatch import BACKENDS, attention, lacking, pick, refused


def made(
    *shape: int, keys: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(sum(shape))
    other = (*shape[:2], keys or shape[2], shape[3])
    return tuple(torch.randn(s, generator=rng).to(dtype) for s in (shape, other, other))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(choice, "folder", lambda: tmp_path / "attention")
    monkeypatch.setattr(choice, "_known", {})
    monkeypatch.setattr(choice, "_told", set())
    return tmp_path / "attention"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", [name for name in BACKENDS if lacking(name) is None])
def test_every_backend_that_runs_here(name: str, dtype: torch.dtype) -> None:
    """Within the error that it states; those whose error depends on the tokens stay near their own reference."""
    for shape, keys in (((1, 1, 1, 8), 1), ((2, 3, 33, 40), 77), ((1, 2, 130, 64), 0)):
        q, k, v = made(*shape, keys=keys, dtype=dtype)
        call = Call(q, k, v, None, 0.2)
        why = refused(call, name)
        if why is not None:
            with pytest.raises(ValueError, match=f"site: attention by {name} "):
                attention(q, k, v, scale=0.2, site="site", backend=name)
            continue
        out = attention(q, k, v, scale=0.2, backend=name)
        assert out.shape == q.shape and out.dtype == dtype
        error = BACKENDS[name].error
        if error != float("inf"):
            rounding = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 2e-6)
            assert (
                relative(out, reference(Call(*(t.double() for t in call[:3]), None, 0.2))) < error + rounding
            )


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("shape", [(), (12,), (9, 12), (1, 1, 12), (2, 1, 9, 12), (2, 3, 9, 12)])
def test_bias(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = made(2, 3, 9, 16, keys=12)
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    bias = bias if dtype == torch.float32 else (bias > -1) | (torch.arange(12) == 0)
    wanted = reference(Call(q, k, v, bias))
    assert relative(attention(q, k, v, bias=bias), wanted) < 1e-6
    assert not shape or relative(wanted, attention(q, k, v)) > 1e-3
    for name in ("int8", "tiles", "linear"):
        with pytest.raises(ValueError, match="takes no mask or bias" if lacking(name) is None else "lacks"):
            attention(q, k, v, bias=bias, backend=name)


def test_values_of_another_width(kept: Path) -> None:
    """`auto` meets a new class of shapes, apart from that of values as wide as keys."""
    q, k, v = made(2, 3, 70, 16)
    attention(q, k, v, error=0.1)
    for width in (8, 24):
        other = v.repeat(1, 1, 1, 2)[..., :width]
        wanted = reference(Call(q, k, other))
        for name, error in (("auto", 0.0), ("auto", 0.1), ("sdpa", 0.0), ("dense", 0.0)):
            assert relative(attention(q, k, other, error=error, backend=name), wanted) < 1e-5
        assert attention(q, k, other, backend="linear").shape == other.shape
        said = f"takes values as wide as the keys, 16, and they are {width} wide"
        for name in [name for name in ("native", "int8", "tiles") if lacking(name) is None]:
            with pytest.raises(ValueError, match=f"attention by {name} {said}"):
                attention(q, k, other, backend=name)


@pytest.mark.parametrize("scale", [-0.2, 0.0])
@pytest.mark.parametrize("name", [n for n, b in BACKENDS.items() if lacking(n) is None and b.error < 1])
def test_any_scale(name: str, scale: float) -> None:
    q, k, v = made(1, 2, 33, 40, keys=300)
    if refused(Call(q, k, v), name) is None:
        out = attention(q, k, v, scale=scale, backend=name)
        assert relative(out, reference(Call(q, k, v, None, scale))) < BACKENDS[name].error + 2e-6


def test_gradients_of_the_exact_ones() -> None:
    grads = []
    for name in ("sdpa", "dense"):
        q, k, v = (t.requires_grad_() for t in made(1, 2, 20, 16))
        attention(q, k, v, backend=name).square().sum().backward()
        grads.append([t.grad for t in (q, k, v)])
    for ours, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_refused() -> None:
    q, k, v = made(1, 2, 4, 8)
    with pytest.raises(ValueError, match=r"backend must be auto or one of sdpa, .*, got 'fast'"):
        attention(q, k, v, backend="fast")
    with pytest.raises(ValueError, match=r"needs q \[B,H,L,D\]"):
        attention(q, k[:, :1], v)
    with pytest.raises(ValueError, match=r"bias must broadcast to \[1, 2, 4, 4\], got \[3, 4\]"):
        attention(q, k, v, bias=torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"bias must broadcast to \[1, 2, 4, 4\], got \[3\]"):
        attention(q, k, v, bias=torch.zeros(3))
    with pytest.raises(ValueError, match="one key and one feature at least"):
        attention(q, k[:, :, :0], v[:, :, :0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is lacking without CUDA")
@pytest.mark.parametrize(
    "name", ["cudnn", "xformers", "flash", "flash3", "sage", "triton-int8", "triton-fp8"]
)
def test_what_is_lacking_is_one_sentence_with_a_remedy(name: str) -> None:
    said = lacking(name)
    assert said is not None and said.startswith(f"attention by {name} needs ")
    assert said.endswith("; take auto or sdpa") and "\n" not in said


def test_auto_is_exact_unless_told_otherwise(kept: Path) -> None:
    call = Call(*made(1, 2, 64, 32))
    assert pick(call).error == 0
    if not torch.cuda.is_available():
        halves = Call(*(t.half() for t in call[:3]))
        assert pick(halves).name == "sdpa", "one alone is not measured"
        assert not any("float16" in file.read_text() for file in kept.glob("*.json"))


@pytest.mark.skipif(int8.available() is not None, reason=str(int8.available()))
def test_auto_measures_once_and_keeps_it(
    kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sfumato")
    q, k, v = made(1, 2, 300, 32)
    first = pick(Call(q, k, v), 0.1)
    (file,) = kept.glob("*.json")
    found = json.loads(file.read_text())
    (place,) = found
    assert place == "cpu float32 512x512 d32" and set(found[place]) == {"sdpa", "native", "int8"}
    assert first.name == min(found[place], key=found[place].get)
    assert len(caplog.messages) == 1 and f"takes {first.name} for {place}" in caplog.messages[0]

    found[place] = {"sdpa": 2.0, "native": 3.0, "int8": 1.0}
    file.write_text(json.dumps(found))
    monkeypatch.setattr(choice, "_known", {})
    monkeypatch.setattr(choice, "_measured", None)  # would fail if it were called
    assert pick(Call(q, k, v), 0.1).name == "int8"
    assert pick(Call(*made(3, 4, 257, 32)), 0.1).name == "int8", "the batch is not part of the class"
    assert pick(Call(q, k, v), 0.01).name == "sdpa", "int8 errs by more"
    assert pick(Call(q.half(), k.half(), v.half()), 0.1).name == "sdpa", "the others are for float32"
    assert relative(attention(q, k, v, error=0.1), int8.attend(q, k, v)) == 0


def test_what_is_kept_may_be_damaged_or_refused(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Call(*made(1, 1, 8, 8))
    two = [BACKENDS["sdpa"], BACKENDS["dense"]]
    kept.mkdir()
    choice._file(call).write_text("{")
    assert choice.fastest(call, two) in two
    assert set(json.loads(choice._file(call).read_text())["cpu float32 8x8 d8"]) == {"sdpa", "dense"}
    monkeypatch.setattr(choice, "folder", lambda: Path("/proc/none"))
    monkeypatch.setattr(choice, "_known", {})
    assert choice.fastest(call, two) in two


def test_one_that_fails_in_spite_of_its_word_is_left_out(kept: Path) -> None:
    def fails(call: Call) -> torch.Tensor:
        raise RuntimeError("no kernel image")

    broken = Backend("broken", lambda: None, lambda call: None, fails)
    assert choice.fastest(Call(*made(1, 1, 8, 8)), [broken, BACKENDS["sdpa"]]).name == "sdpa"


@pytest.mark.parametrize(("queries", "keys", "size"), [(1, 1, 8), (64, 64, 16), (70, 37, 16), (33, 130, 32)])
def test_tiles_are_a_mask(queries: int, keys: int, size: int) -> None:
    q, k, v = made(2, 3, queries, 24, keys=keys)
    masses = tiles.masses(3 * q, k, size)
    torch.testing.assert_close(masses.sum(3), torch.ones(masses.shape[:3]))
    for mass in (0.3, 0.8, 1.0):
        kept = tiles.fewest(masses, mass)
        assert bool(((masses * kept).sum(3) >= mass - 1e-5).all())
        ours = tiles.attend(3 * q, k, v, kept, 0.3, size)
        assert relative(ours, tiles.reference(3 * q, k, v, kept, 0.3, size)) < 1e-6
    assert int(tiles.fewest(masses, 1.0, most=2).sum(3).max()) <= 2
    lost = 1 - (masses * (some := tiles.fewest(masses, 0.7))).sum(3).min()
    worst = (tiles.attend(3 * q, k, v, some, None, size) - reference(Call(3 * q, k, v))).abs()
    assert float(worst.mean(2).max()) <= 2 * float(lost) * float(v.abs().max()) + 1e-5
    with pytest.raises(ValueError, match=r"kept must be \[2, 3"):
        tiles.attend(q, k, v, kept[:, :, :, :0], 0.3, size)


def test_tiles_of_a_batch_are_those_of_its_singles() -> None:
    q, k, v = made(3, 2, 200, 32)
    kept = tiles.estimated(q * 4, k, size=16, mass=0.6)
    both = tiles.attend(q, k, v, kept, None, 16)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(tiles.estimated(q[one] * 4, k[one], size=16, mass=0.6), kept[one])
        assert relative(tiles.attend(q[one], k[one], v[one], kept[one], None, 16), both[one]) < 1e-6


def test_the_estimate_finds_what_lies_together() -> None:
    """Tokens in clusters that are runs: the means of tiles say which tiles matter."""
    rng = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(1, 2, 8, 32, generator=rng)
    x = centres.repeat_interleave(32, 2) + 0.3 * torch.randn(1, 2, 256, 32, generator=rng)
    v = torch.randn(1, 2, 256, 32, generator=rng)
    kept = tiles.estimated(x, x, size=32)
    assert float(kept.float().mean()) < 0.3
    assert relative(tiles.attend(x, x, v, kept, None, 32), reference(Call(x, x, v))) < 0.02


@pytest.mark.parametrize("tokens", [1, 7, 500])
def test_linear_is_its_reference(tokens: int) -> None:
    q, k, v = made(2, 3, 9, 16, keys=tokens)
    assert relative(linear.attend(q, k, v), linear.reference(q, k, v)) < 1e-6
    half = linear.attend(*(t.bfloat16() for t in (q, k, v)))
    assert half.dtype == torch.bfloat16 and relative(half, linear.reference(q, k, v)) < 0.03
