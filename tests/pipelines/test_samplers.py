"""Every sampler on the exact denoiser of a Gaussian: order, endpoints, spread, and the CFG++ rule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sfumato.pipelines.guidance.cfgpp import Cfgpp
from sfumato.pipelines.loop import run
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.paths import begin
from sfumato.pipelines.protocols import State
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.samplers.dpmpp_2m import dpmpp_2m
from sfumato.pipelines.samplers.dpmpp_2m_sde import Dpmpp2mSde
from sfumato.pipelines.samplers.euler_ancestral import EulerAncestral
from sfumato.pipelines.samplers.heun import heun
from sfumato.pipelines.samplers.lcm import lcm
from sfumato.pipelines.samplers.tcd import Tcd
from sfumato.pipelines.samplers.unipc import Unipc
from toys import GaussianDenoiser, consistent, exact, gaussian, means, paths

ODE = {
    "ddim": (Ddim(), 1),
    "heun": (heun, 2),
    "dpmpp_2m": (dpmpp_2m, 2),
    "unipc1": (Unipc(1), 2),
    "unipc2": (Unipc(2), 3),
    "unipc3": (Unipc(3), 3),
}
SDE = {
    "ddim1": Ddim(1.0),
    "euler_ancestral": EulerAncestral(),
    "dpmpp_2m_sde": Dpmpp2mSde(),
    "lcm": lcm,
    "tcd": Tcd(0.3),
}
ALL = {name: sampler for name, (sampler, _) in ODE.items()} | SDE
PATHS = paths()
MU, S = 0.7, 0.6


def even_lam(path, n, noisy=-2.5, clean=2.5):
    """n + 1 times even in half-log-SNR."""
    return [path.time_of(noisy + i / n * (clean - noisy)) for i in range(n + 1)]


def order_of(sampler, path, sizes=(16, 32, 64, 128)):
    x = torch.tensor([[0.4, -1.3, 2.0]], dtype=torch.float64)
    errors = []
    for n in sizes:
        ts = even_lam(path, n)
        got = run(sampler, gaussian(path, MU, S), path.sigma(ts[0]) * x, ts, path)
        errors.append(float((got - exact(path, MU, S, path.sigma(ts[0]) * x, ts[0], ts[-1])).abs().max()))
    return math.log2(errors[-2] / errors[-1]), errors


@pytest.mark.parametrize("path", ["vp", "flow", "flow3", "ve"])
@pytest.mark.parametrize("name", ODE)
def test_order(name, path):
    sampler, promised = ODE[name]
    order, errors = order_of(sampler, PATHS[path])
    assert order > promised - 0.25, (order, errors)
    assert order < promised + 1.25, "an order far above the promised one means that the test does not test"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_from_start_to_end_are_finite(name, path, steps):
    p = PATHS[path]
    noise = SeededNoise.whole(1, (3, 4), dtype=torch.float64)
    ts = [p.start + i / steps * (p.end - p.start) for i in range(steps + 1)]
    got = run(ALL[name], gaussian(p, MU, S), begin(p, noise()), ts, p, noise=noise)
    assert torch.isfinite(got).all()
    if steps == 1:  # one step is the clean estimate itself
        x = begin(p, SeededNoise.whole(1, (3, 4), dtype=torch.float64)())
        torch.testing.assert_close(got, gaussian(p, MU, S)(x, p.start).x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["vp", "flow", "ve"])
@pytest.mark.parametrize("name", ["ddim1", "euler_ancestral", "dpmpp_2m_sde", "lcm", "tcd1"])
def test_stochastic_samplers_reach_mean_and_spread(name, path):
    if (name, path) == ("tcd1", "vp"):
        pytest.skip(
            "on training steps gamma = 1 lands on step 0, which is not clean; test_diffusers has the values"
        )
    p = PATHS[path]
    noise = SeededNoise.whole(3, (40_000,), dtype=torch.float64)
    # lcm and tcd sample consistency models; for those any number of steps is exact
    exactly = name in ("lcm", "tcd1")
    predict = consistent(p, MU, S) if exactly else gaussian(p, MU, S)
    ts = (
        even_lam(p, 4, -2.6, 3.0)
        if exactly
        else even_lam(p, 60 if name == "dpmpp_2m_sde" else 240, -2.6, 4.5)
    )
    x = p.alpha(ts[0]) * MU + math.hypot(p.alpha(ts[0]) * S, p.sigma(ts[0])) * noise()
    got = run(Tcd(1.0) if name == "tcd1" else SDE[name], predict, x, [*ts, 0.0], p, noise=noise)
    assert float(got.mean()) == pytest.approx(MU, abs=0.015)
    assert float(got.std()) == pytest.approx(S, rel=0.03)


@pytest.mark.parametrize("path", ["vp", "flow", "ve"])
def test_stochastic_samplers_without_noise_are_the_ode(path):
    p = PATHS[path]
    x, ts = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), even_lam(p, 6)

    def go(sampler):
        return run(sampler, gaussian(p, MU, S), p.sigma(ts[0]) * x, ts, p)

    assert torch.equal(go(EulerAncestral(0.0)), go(Ddim()))
    assert torch.equal(go(Dpmpp2mSde(0.0)), go(dpmpp_2m))
    torch.testing.assert_close(go(Tcd(0.0)), go(Ddim()), rtol=1e-12, atol=1e-12)


def test_the_same_code_is_one_solver_on_flow_and_ve():
    """On grids of equal half-log-SNR a solver does the same on every path, but for the scale of x."""
    flow, ve = PATHS["flow"], PATHS["ve"]
    x = torch.tensor([1.0, -0.4], dtype=torch.float64)
    a, b = even_lam(flow, 8), even_lam(ve, 8)
    for sampler in (Ddim(), dpmpp_2m, Unipc(2), Unipc(3)):
        one = run(sampler, gaussian(flow, MU, S), flow.alpha(a[0]) * x, a, flow) / flow.alpha(a[-1])
        two = run(sampler, gaussian(ve, MU, S), x, b, ve)
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["vp", "flow", "ve"])
def test_cfgpp_through_pred_is_the_explicit_update(path):
    p = PATHS[path]
    denoise, conds = GaussianDenoiser(p, S), means()
    predict = Cfgpp(0.6)(denoise, conds)
    x, ts = torch.tensor([0.3, 2.0], dtype=torch.float64), even_lam(p, 5)
    explicit, old = x, None
    explicit2m = x
    for t, u in itertools.pairwise(ts):
        pos, neg = denoise(explicit, t, *conds)
        x0 = neg.x0 + 0.6 * (pos.x0 - neg.x0)
        explicit = p.alpha(u) * x0 + p.sigma(u) * neg.eps  # algorithm 2 of the paper
        pos, neg = denoise(explicit2m, t, *conds)
        x0 = neg.x0 + 0.6 * (pos.x0 - neg.x0)
        ratio_t, ratio_u = p.sigma(t) / p.alpha(t), p.sigma(u) / p.alpha(u)
        h = math.log(ratio_t / ratio_u)
        d = x0 if old is None else x0 + h / (2 * old[1]) * (x0 - old[0])
        y = d + ratio_u * (neg.eps + (x0 - d) / ratio_t)  # k-diffusion's 2M-CFG++ in VE coordinates
        explicit2m, old = p.alpha(u) * y, (x0, h)
    torch.testing.assert_close(run(Ddim(), predict, x, ts, p), explicit, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run(dpmpp_2m, predict, x, ts, p), explicit2m, rtol=1e-12, atol=1e-12)


def test_cfgpp_differs_from_cfg_in_every_sampler():
    p = PATHS["vp"]
    denoise, x, ts = (
        GaussianDenoiser(p, S),
        torch.tensor([0.3, 2.0], dtype=torch.float64),
        even_lam(PATHS["vp"], 5),
    )
    pp = Cfgpp(0.6)(denoise, means())

    def consistent_eps(y, t):
        x0 = pp(y, t).x0
        return type(pp(y, t))(x0, (y - p.alpha(t) * x0) / p.sigma(t))

    for sampler in (Ddim(), heun, dpmpp_2m, Dpmpp2mSde(0.0), Unipc(2)):
        assert not torch.allclose(
            run(sampler, pp, x, ts, p), run(sampler, consistent_eps, x, ts, p), rtol=1e-3
        )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 4, 5, 6, 6), (3, 4, 6, 6), (17,)])
def test_images_clips_views_and_vectors(name, shape):
    p = PATHS["flow"]
    noise = SeededNoise.whole(0, shape)
    got = run(ALL[name], gaussian(p, MU, S), begin(p, noise()), [1.0, 0.6, 0.3, 0.0], p, noise=noise)
    assert got.shape == shape and torch.isfinite(got).all()


@pytest.mark.parametrize("name", ALL)
def test_batch_of_two_equals_two_singles_and_twice_equals_once(name):
    p = PATHS["vp"]
    ts = [1.0, 0.7, 0.4, 0.1, 0.0]

    def go(seed, n):
        noise = SeededNoise.batch(seed, n, (4, 8, 8))
        return run(ALL[name], gaussian(p, MU, S), begin(p, noise()), ts, p, noise=noise)

    both = go(5, 2)
    assert torch.equal(both, torch.cat([go(5, 1), go(6, 1)]))
    assert torch.equal(both, go(5, 2))
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_stays_bfloat16(name):
    p = PATHS["flow"]
    noise = SeededNoise.whole(0, (2, 4))
    x = begin(p, noise()).bfloat16()
    assert run(ALL[name], gaussian(p, MU, S), x, [1.0, 0.5, 0.2, 0.0], p, noise=noise).dtype == torch.bfloat16


def test_a_lone_step_is_first_order_and_pure():
    p = PATHS["vp"]
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    first = Ddim()(gaussian(p, MU, S), State(x), 0.8, 0.5, p, lambda: x).x
    for sampler in (dpmpp_2m, Unipc(2), Unipc(3)):
        kept = x.clone()
        state = sampler(gaussian(p, MU, S), State(x), 0.8, 0.5, p, lambda: x)
        torch.testing.assert_close(state.x, first, rtol=1e-12, atol=1e-12)
        assert torch.equal(x, kept)


def test_settings_out_of_range_say_so():
    for make, words in (
        (lambda: Ddim(1.5), "eta must be in 0..1, got 1.5"),
        (lambda: EulerAncestral(-0.1), "eta must be in 0..1, got -0.1"),
        (lambda: Dpmpp2mSde(3.0), "eta must be in 0..2, got 3.0"),
        (lambda: Unipc(4), "order must be in 1..3, got 4"),
        (lambda: Tcd(2.0), "gamma must be in 0..1, got 2.0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
