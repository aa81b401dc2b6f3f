"""Guidance: closed forms on Gaussians, neutrality, and the number of evaluations."""

from __future__ import annotations

import math

import pytest
import torch
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.guidance.cfg_rescale import CfgRescale
from sfumato.pipelines.guidance.cfgpp import Cfgpp
from sfumato.pipelines.guidance.interval import Interval
from sfumato.pipelines.guidance.none import none
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.samplers.dpmpp_2m import dpmpp_2m
from toys import GaussianDenoiser, ToyDenoiser, biases, means, paths

PATHS = paths()
TS = [0.9, 0.5, 0.2, 0.05]
GUIDES = {"cfg": Cfg(3.0), "cfgpp": Cfgpp(0.7), "rescale": CfgRescale(5.0), "interval": Interval(4.0)}
OFF = {"cfg": Cfg(1.0), "rescale": CfgRescale(1.0), "interval": Interval(1.0)}


def x_like(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("path", PATHS)
def test_neutral_equals_none_bit_for_bit_in_one_evaluation(name, path):
    x = x_like(2, 4, 5, 5)
    denoise = ToyDenoiser(PATHS[path])
    for t in TS:
        want = none(denoise, biases())(x, t)
        got = OFF[name](denoise, biases(neg=None))(x, t)
        assert torch.equal(got.x0, want.x0) and torch.equal(got.eps, want.eps)
    assert set(denoise.keys) == {("pos",)}


@pytest.mark.parametrize("path", PATHS)
def test_cfg_of_two_gaussians_is_the_gaussian_of_the_extrapolated_mean(path):
    """With equal spreads, extrapolated scores are the score of the mean neg + scale (pos - neg)."""
    denoise = GaussianDenoiser(PATHS[path], 0.5)
    x = x_like(3, 4, dtype=torch.float64)
    for t in (PATHS[path].start, 0.4, 0.05):
        got = Cfg(3.0)(denoise, means(1.0, -0.5))(x, t)
        want = denoise(x, t, means(-0.5 + 3.0 * 1.5).pos)[0]
        torch.testing.assert_close(got.x0, want.x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.eps, want.eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["cfg", "rescale", "interval"])
def test_x0_and_eps_belong_to_x(name, path):
    """alpha x0 + sigma eps = x, so that samplers may use either."""
    p, x = PATHS[path], x_like(2, 4, 5, 5, dtype=torch.float64)
    denoise = GaussianDenoiser(p, 0.5)
    for t in (p.start, *TS):
        got = GUIDES[name](denoise, means())(x, t)
        torch.testing.assert_close(p.alpha(t) * got.x0 + p.sigma(t) * got.eps, x, rtol=1e-9, atol=1e-9)


def test_cfgpp_takes_eps_from_the_negative():
    denoise, x = ToyDenoiser(PATHS["vp"]), x_like(2, 4, 5, 5)
    pos, neg = denoise(x, 0.5, *biases())
    got = Cfgpp(0.7)(denoise, biases())(x, 0.5)
    assert torch.equal(got.eps, neg.eps)
    torch.testing.assert_close(got.x0, 0.3 * neg.x0 + 0.7 * pos.x0)


def test_rescale_is_the_papers_formula_on_v():
    p, x = PATHS["vp0"], x_like(2, 4, 5, 5, dtype=torch.float64)
    net = ToyDenoiser(p)
    net.net.double()
    for t in (1.0, 0.6, 0.1):
        pos, neg = net(x, t, *biases())
        a, s = p.alpha(t), p.sigma(t)
        v_pos, v_neg = (a * q.eps - s * q.x0 for q in (pos, neg))
        v = v_neg + 5.0 * (v_pos - v_neg)
        rescaled = v * (v_pos.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True))
        v = 0.7 * rescaled + 0.3 * v
        got = CfgRescale(5.0, 0.7)(net, biases())(x, t)
        torch.testing.assert_close(got.x0, a * x - s * v, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got.eps, s * x + a * v, rtol=1e-9, atol=1e-9)


def test_rescale_with_phi_0_is_cfg():
    p, x = PATHS["flow"], x_like(2, 4, 5, 5)
    net = ToyDenoiser(p)
    got, want = CfgRescale(5.0, 0.0)(net, biases())(x, 0.5), Cfg(5.0)(net, biases())(x, 0.5)
    assert torch.equal(got.x0, want.x0) and torch.equal(got.eps, want.eps)


@pytest.mark.parametrize("path", PATHS)
def test_rescale_with_phi_1_gives_the_velocity_the_spread_of_pos(path):
    p, x = PATHS[path], x_like(2, 4, 5, 5)
    net, t = ToyDenoiser(p), 0.7
    a, s = p.alpha(t), p.sigma(t)
    c = math.hypot(a, s)
    a, s = (1.0, 1.0) if p.name == "flow" else (a / c, s / c)
    full, pos = CfgRescale(5.0, 1.0)(net, biases())(x, t), none(net, biases())(x, t)
    spreads = ((a * q.eps - s * q.x0).std((1, 2, 3)) for q in (full, pos))
    torch.testing.assert_close(*spreads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["vp", "flow", "ve"])
def test_interval_evaluates_the_negative_only_inside(path):
    p = PATHS[path]
    denoise = ToyDenoiser(p)
    x = x_like(1, 4, 3, 3)
    predict = Interval(4.0, low=0.5, high=2.0)(denoise, biases())
    for ratio, guided in ((3.0, False), (1.0, True), (0.3, False)):
        t = p.time_of(-math.log(ratio))
        denoise.keys.clear()
        got = predict(x, t)
        assert denoise.keys == ([("pos", "neg")] if guided else [("pos",)])
        want = (Cfg(4.0) if guided else Cfg(1.0))(denoise, biases())(x, t)
        assert torch.equal(got.x0, want.x0)


def test_interval_without_limits_is_cfg_also_at_alpha_0():
    denoise, x = ToyDenoiser(PATHS["flow"]), x_like(1, 4, 3, 3)
    for t in (1.0, 0.5):
        got = Interval(4.0, low=0.0, high=math.inf)(denoise, biases())(x, t)
        assert torch.equal(got.x0, Cfg(4.0)(denoise, biases())(x, t).x0)


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("path", ["vp", "flow"])
def test_twice_is_once_and_a_batch_is_its_singles(name, path):
    denoise = GaussianDenoiser(PATHS[path], 0.5)

    def go(seed, n):
        noise = SeededNoise.batch(seed, n, (4, 5, 5))
        return Pipeline(denoise, dpmpp_2m, GUIDES[name])(noise(), means(), [1.0, 0.7, 0.3, 0.0])

    assert torch.equal(go(2, 2), go(2, 2))
    torch.testing.assert_close(go(2, 2), torch.cat([go(2, 1), go(3, 1)]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", GUIDES)
def test_bfloat16_stays_bfloat16(name):
    x = x_like(1, 4, 3, 3).bfloat16()
    got = GUIDES[name](GaussianDenoiser(PATHS["flow"], 0.5), means())(x, 0.5)
    assert got.x0.dtype == got.eps.dtype == torch.bfloat16


@pytest.mark.parametrize("name", GUIDES)
def test_without_a_negative(name):
    with pytest.raises(ValueError, match="needs a negative condition"):
        GUIDES[name](ToyDenoiser(PATHS["flow"]), biases(neg=None))


def test_settings_out_of_range_say_so():
    for make, words in (
        (lambda: Cfg(-1.0), "scale must be in 0..100, got -1.0"),
        (lambda: Cfgpp(3.0), "scale must be in 0..2, got 3.0"),
        (lambda: CfgRescale(phi=1.5), "phi must be in 0..1, got 1.5"),
        (lambda: Interval(low=2.0, high=1.0), "low and high must satisfy 0 <= low < high, got 2.0 and 1.0"),
        (lambda: Cfg(math.nan), "got nan"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
