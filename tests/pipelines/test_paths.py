"""Paths: table values, inverses, and the ends."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sfumato.pipelines.paths import begin, diffuse, flow, step_of, time_at, ve, vp, vp_from_config
from toys import SD, paths

PATHS = paths() | {
    "cosine": vp_from_config({"beta_schedule": "squaredcos_cap_v2"}),
    "cosine0": vp_from_config({"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True}),
    "trained": vp_from_config({"trained_betas": [0.1 * (i + 1) / 40 for i in range(40)]}),
    "sigmoid": vp_from_config({"beta_schedule": "sigmoid"}),
}


def lam(path, t):
    return math.log(path.alpha(t) / path.sigma(t))


@pytest.mark.parametrize("name", PATHS)
def test_time_of_inverts_lam(name):
    p = PATHS[name]
    for i in range(1, 400):
        t = p.start * i / 400
        assert p.time_of(lam(p, t)) == pytest.approx(t, rel=1e-9)


@pytest.mark.parametrize("name", PATHS)
def test_lam_falls_and_the_ends_are_clean_and_finite(name):
    p = PATHS[name]
    times = [p.start * i / 777 for i in range(778)]
    for t in times:
        assert isinstance(p.alpha(t), float) and isinstance(p.sigma(t), float)
        assert math.isfinite(p.alpha(t)) and math.isfinite(p.sigma(t))
    ratios = [p.sigma(t) / p.alpha(t) for t in times if p.alpha(t) > 0]
    assert all(a < b for a, b in itertools.pairwise(ratios))
    assert p.alpha(0.0) == 1.0 and p.sigma(0.0) == 0.0
    assert 0 < p.last < p.start and p.sigma(p.last) > 0
    assert p.time_of(math.inf) == 0.0


@pytest.mark.parametrize("name", ["vp", "vp0", "cosine", "trained"])
def test_vp_keeps_the_variance(name):
    p = PATHS[name]
    for i in range(101):
        assert math.hypot(p.alpha(i / 100), p.sigma(i / 100)) == pytest.approx(1.0, abs=1e-12)


def test_vp_between_steps_is_linear_in_log_snr():
    p = PATHS["vp"]
    assert lam(p, 0.5005) == pytest.approx((lam(p, 0.5) + lam(p, 0.501)) / 2, abs=1e-9)
    assert p.sigma(0.0005) / p.alpha(0.0005) == pytest.approx(p.sigma(0.001) / p.alpha(0.001) / 2)


def test_zero_terminal_snr():
    p = PATHS["vp0"]
    assert p.alpha(1.0) == 0.0 and p.sigma(1.0) == 1.0 and p.time_of(-math.inf) == 1.0
    assert p.alpha(0.9995) / p.sigma(0.9995) == pytest.approx(p.alpha(0.999) / p.sigma(0.999) / 2)


def test_where_the_config_says_sampling_ends():
    assert vp_from_config(SD).end == 0.0
    assert vp_from_config(SD | {"set_alpha_to_one": False}).end == 1 / 1000
    assert vp_from_config(SD | {"final_sigmas_type": "sigma_min"}).end == 1 / 1000
    assert vp_from_config(SD | {"final_sigmas_type": "zero"}).end == 0.0


def test_flow_and_ve():
    p = flow(3.0)
    assert p.sigma(0.5) == pytest.approx(0.75) and p.alpha(0.5) == pytest.approx(0.25)
    assert (p.alpha(1.0), p.sigma(1.0)) == (0.0, 1.0)
    assert p.time_of(-math.inf) == 1.0
    q = ve(0.01, 80.0)
    assert (q.start, q.end, q.last) == (80.0, 0.0, 0.01) and q.sigma(3.0) == 3.0


def test_training_steps():
    p = PATHS["vp"]
    assert step_of(p, 1.0) == 999.0 and step_of(p, 0.0) == 0.0 and time_at(p, 999) == 1.0
    assert step_of(p, time_at(p, 401.25)) == pytest.approx(401.25)
    with pytest.raises(ValueError, match="the flow path has no discrete training steps"):
        step_of(flow(), 0.5)


def test_begin_and_diffuse():
    noise, z = torch.randn(4), torch.ones(4)
    torch.testing.assert_close(begin(PATHS["vp"], noise), noise)
    torch.testing.assert_close(begin(flow(), noise), noise)
    torch.testing.assert_close(begin(ve(0.02, 50.0), noise), math.hypot(1, 50) * noise)
    torch.testing.assert_close(diffuse(flow(), z, noise, 0.25), 0.75 * z + 0.25 * noise)


def test_bad_settings():
    for make, words in (
        (lambda: flow(0), "shift must be above 0, got 0"),
        (lambda: ve(2, 1), "need 0 < sigma_min < sigma_max"),
        (lambda: vp([0.5, 0.9]), "falling values"),
        (lambda: vp_from_config({"beta_schedule": "odd"}), "beta_schedule 'odd' is unknown"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
