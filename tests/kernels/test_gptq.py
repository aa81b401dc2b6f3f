"""GPTQ: against the greedy rule written out, nothing to do for independent inputs, and less error for others."""

from __future__ import annotations

import pytest
import torch
from sfumato.kernels.quant import gptq
from sfumato.kernels.quant.gptq import Stepped, _hessian, pack_for
from sfumato.kernels.quant.integers import DualGrained, Grouped, PerChannel
from torch import Tensor

FORMS = [Grouped(4, 16), Grouped(3, 64), DualGrained(32), PerChannel()]


def given(count: int, rows: int = 400) -> tuple[Tensor, Tensor]:
    """A weight, and inputs whose numbers go together."""
    rng = torch.Generator().manual_seed(count)
    mixed = torch.randn(count, count, generator=rng) / count**0.5 + 0.3 * torch.eye(count)
    return torch.randn(12, count, generator=rng), torch.randn(rows, count, generator=rng) @ mixed


def greedy(form: Stepped, weight: Tensor, rows: Tensor) -> Tensor:
    """One column after the other is rounded, and all later ones take the place that is then the best for them."""
    w, h = weight.double().clone(), _hessian(rows)
    steps = form.steps(form.pack(weight), weight.shape[1]).double()
    order = h.diagonal().argsort(descending=True).tolist()
    codes = torch.zeros_like(w)
    for n, j in enumerate(order):
        codes[:, j] = (w[:, j] / steps[:, j]).round().clamp(-form.half, form.half)
        later = order[n + 1 :]
        if later:
            error = (w[:, j] - codes[:, j] * steps[:, j])[:, None]
            w[:, later] += error @ torch.linalg.solve(h[later][:, later], h[later, j][:, None]).T
    return (codes * steps).float()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("count", [48, 200])
def test_is_the_greedy_rule(form: Stepped, count: int) -> None:
    weight, rows = given(count)
    tensors = pack_for(form, weight, rows)
    plain = form.pack(weight)
    assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in plain.items()
    }
    off = (form.unpack(tensors, count) - greedy(form, weight, rows)).abs() > 1e-5
    assert off.float().mean() < 0.01  # ties


def test_parts_of_many_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself."""
    form, (weight, rows) = PerChannel(), given(200)
    monkeypatch.setattr(gptq, "MOST", 128)
    told = form.unpack(pack_for(form, weight, rows), 200)
    steps = form.steps(form.pack(weight), 200)
    codes = [
        gptq._codes(weight[:, at], steps[:, at], rows[:, at], 127) for at in (slice(128), slice(128, 200))
    ]
    assert torch.allclose(told, torch.cat(codes, 1) * steps)


def test_zero_points_are_refused() -> None:
    with pytest.raises(ValueError, match="symmetric = True"):
        pack_for(Grouped(4, 16, symmetric=False), *given(48))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_inputs_that_have_nothing_to_do_with_each_other(form: Stepped) -> None:
    """Plain rounding, where that is to the nearest."""
    weight, _ = given(64)
    told = form.unpack(pack_for(form, weight, torch.eye(64)), 64)
    assert torch.allclose(told, form.unpack(form.pack(weight), 64), atol=1e-6)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("rows", [600, 60])
def test_products_of_other_rows_lose_less(form: Stepped, rows: int) -> None:
    """Fewer rows than columns, too."""
    weight, x = given(200, 1200)
    weight_of = {"ours": pack_for(form, weight, x[:rows]), "plain": form.pack(weight)}
    errors = {
        name: float(((form.unpack(tensors, 200) - weight) @ x[600:].T).square().mean())
        for name, tensors in weight_of.items()
    }
    print(errors)
    assert errors["ours"] < (0.8 if rows == 600 else 1.0) * errors["plain"]
    assert torch.isfinite(form.unpack(pack_for(form, weight, torch.zeros(3, 200)), 200)).all()
