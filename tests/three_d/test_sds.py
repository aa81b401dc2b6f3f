"""Score distillation: the gradient's mean is known in closed form, and descent finds the mean of the data."""

from __future__ import annotations

import pytest
import torch
from sfumato.three_d.distill.sds import Sds
from toys import gaussian, paths

MU, S = 0.7, 0.5


@pytest.mark.parametrize("path", ["vp", "flow", "ve"])
def test_gradient_is_the_analytic_one(path):
    """eps - noise = (alpha sigma (z - mu) - alpha^2 s^2 noise) / (alpha^2 s^2 + sigma^2) for a Gaussian."""
    p = paths()[path]
    gen = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(4, 3, generator=gen, dtype=torch.float64) for _ in range(2))
    for t in (0.2, 0.7):
        a, s = p.alpha(t), p.sigma(t)
        spread = a * a * S * S + s * s
        want = (a * s * (z - MU) - a * a * S * S * noise) / spread
        predict = gaussian(p, MU, S)
        got = Sds("one")(predict, p, z, t, noise)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(Sds()(predict, p, z, t, noise), s * s * want, rtol=1e-10, atol=1e-10)
        many = torch.randn(40_000, 1, generator=gen, dtype=torch.float64)
        mean = Sds("one")(predict, p, torch.full_like(many, 2.0), t, many).mean()
        assert float(mean) == pytest.approx(a * s * (2.0 - MU) / spread, abs=0.02)


@pytest.mark.parametrize("path", ["vp", "flow", "ve"])
def test_descent_finds_the_mean(path):
    p = paths()[path]
    gen = torch.Generator().manual_seed(1)
    z = torch.full((64,), -2.0, requires_grad=True)
    optimiser = torch.optim.Adam([z], lr=0.05)
    for i in range(300):
        t = 0.2 + 0.6 * float(torch.rand((), generator=gen))
        grad = Sds("one")(gaussian(p, MU, S), p, z, t, torch.randn(64, generator=gen))
        assert not grad.requires_grad
        optimiser.zero_grad()
        (z * grad.detach()).sum().backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - i / 300)
    assert float(z.detach().mean()) == pytest.approx(MU, abs=0.1)


def test_errors():
    with pytest.raises(ValueError, match="weight must be sigma2 or one, got 'half'"):
        Sds("half")
