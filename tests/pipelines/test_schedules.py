"""Schedules: every one on every path, and the published numbers."""

from __future__ import annotations

import itertools
import math

import pytest
from sfumato.pipelines.paths import flow, ve, vp_from_config
from sfumato.pipelines.schedules.ays import Ays
from sfumato.pipelines.schedules.custom import Custom
from sfumato.pipelines.schedules.exponential import Exponential
from sfumato.pipelines.schedules.flow_shift import FlowShift
from sfumato.pipelines.schedules.karras import Karras
from sfumato.pipelines.schedules.linear_quadratic import LinearQuadratic
from sfumato.pipelines.schedules.sgm_uniform import sgm_uniform
from sfumato.pipelines.schedules.uniform import Uniform
from toys import SD, paths

SCHEDULES = {
    "uniform": Uniform(),
    "linspace": Uniform("linspace"),
    "karras": Karras(),
    "exponential": Exponential(),
    "sgm_uniform": sgm_uniform,
    "flow_shift": FlowShift(),
    "linear_quadratic": LinearQuadratic(),
    "ays": Ays(),
    "ays_sdxl": Ays("sdxl"),
}
PATHS = paths() | {"vp_end": vp_from_config(SD | {"set_alpha_to_one": False})}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25])
def test_times_fall_from_start_to_end(name, path, steps):
    p = PATHS[path]
    ts = SCHEDULES[name](steps, p)
    assert len(ts) == steps + 1 and all(isinstance(t, float) for t in ts)
    assert all(a > b for a, b in itertools.pairwise(ts))
    assert ts[0] == p.start or (name, steps) == ("linspace", 1)
    assert ts[-1] == p.end or (ts[-1] == 0.0 and ts[-2] == p.end)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_steps_is_refused(name):
    with pytest.raises(ValueError, match="steps must be"):
        SCHEDULES[name](0, PATHS["vp"])


def ratio(path, t):
    return path.sigma(t) / path.alpha(t)


def test_karras_is_the_formula():
    p = ve(0.002, 80.0)
    ts = Karras()(18, p)
    for i in range(18):
        assert ts[i] == pytest.approx((80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    vp = PATHS["vp"]
    got = [ratio(vp, t) for t in Karras(sigma_min=0.1, sigma_max=10.0)(5, vp)[:-1]]
    assert got[0] == pytest.approx(10.0) and got[-1] == pytest.approx(0.1)


def test_exponential_is_even_in_log_snr():
    p = PATHS["vp"]
    logs = [math.log(ratio(p, t)) for t in Exponential()(9, p)[:-1]]
    gaps = [a - b for a, b in itertools.pairwise(logs)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)


def test_sgm_uniform_leaves_out_its_last_value():
    ts = sgm_uniform(4, PATHS["vp"])
    assert ts == pytest.approx([1.0, 0.75025, 0.5005, 0.25075, 0.0])


def test_flow_shift_is_its_own_whatever_the_path_shift():
    for shift in (1.0, 3.0):
        p = flow(shift)
        sigmas = [p.sigma(t) for t in FlowShift(3.0)(4, p)]
        assert sigmas == pytest.approx([3 * r / (1 + 2 * r) for r in (1, 0.75, 0.5, 0.25, 0)])
    assert FlowShift(1.0)(5, flow()) == pytest.approx(Uniform()(5, flow()))
    vp = PATHS["vp"]
    levels = [vp.sigma(t) / (vp.alpha(t) + vp.sigma(t)) for t in FlowShift(3.0)(4, vp)]
    unshifted = [s / (3 - 2 * s) for s in levels]
    assert unshifted == pytest.approx([unshifted[0] * f for f in (1, 0.75, 0.5, 0.25, 0)])


def test_linear_quadratic_creeps_then_runs():
    sigmas = LinearQuadratic(0.025)(64, flow())
    assert sigmas[:33] == pytest.approx([1 - 0.025 * i / 32 for i in range(33)])
    gaps = [a - b for a, b in itertools.pairwise(sigmas[32:])]
    seconds = [b - a for a, b in itertools.pairwise(gaps)]
    assert seconds == pytest.approx([2 * (1 - 0.05) / 32**2] * 31)
    assert LinearQuadratic(0.5)(6, flow()) == pytest.approx(Uniform()(6, flow()))


def test_flow_shift_grows_with_tokens_and_ends_at_terminal():
    sigmas = FlowShift(tokens=4096)(4, flow())
    assert sigmas[2] == pytest.approx(math.exp(1.15) / (math.exp(1.15) + 1))
    assert FlowShift(tokens=1024)(4, flow())[2] < sigmas[2]
    assert FlowShift(terminal=0.1)(8, flow())[-2] == pytest.approx(0.1)


def test_ays_has_the_published_times():
    """The authors list training steps as well as sigmas for SD 1.5; the two agree to rounding."""
    p = PATHS["vp"]
    steps = [t * 1000 - 1 for t in Ays("sd15")(10, p)[:-1]]
    published = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert all(abs(a - b) < 3.5 for a, b in zip(steps, published, strict=True))
    twenty = Ays("svd")(20, ve(0.002, 700.0))
    assert twenty[2] == pytest.approx(54.5) and twenty[1] == pytest.approx(math.sqrt(700 * 54.5))


def test_custom_units_agree():
    p = PATHS["vp"]
    ts = Uniform()(5, p)
    ratios = tuple(ratio(p, t) for t in ts)
    flows = tuple(r / (1 + r) for r in ratios)
    for values, unit in (
        (tuple(ts), "t"),
        (ratios, "ratio"),
        (flows, "flow"),
        ((999, 799, 599, 399, 199), "step"),
    ):
        assert Custom(values, unit)(5, p) == pytest.approx(ts)
    with pytest.raises(ValueError, match="these values make 4 steps, got steps = 5"):
        Custom()(5, p)
    with pytest.raises(ValueError, match="values must be falling"):
        Custom((0.5, 0.7))
    with pytest.raises(ValueError, match="unit must be"):
        Custom(unit="sigma")
    with pytest.raises(ValueError, match="must fall within"):
        Custom((3.0, 0.0))(1, p)


def test_settings_out_of_range_say_so():
    for make, words in (
        (lambda: Uniform("even"), "spacing must be trailing, leading or linspace, got 'even'"),
        (lambda: Uniform("leading")(4, flow()), "leading needs training steps"),
        (lambda: Uniform()(1001, PATHS["vp"]), r"steps must be in 1..1000"),
        (lambda: Karras(rho=0.5), "rho must be in 1..20, got 0.5"),
        (lambda: Exponential(sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max"),
        (lambda: FlowShift(0.0), "shift must be in 0.01..100, got 0.0"),
        (lambda: LinearQuadratic(0.6), "threshold must be above 0 to 0.5, got 0.6"),
        (lambda: FlowShift(terminal=1.0), "terminal must be in 0..1, got 1.0"),
        (lambda: Ays("sd3"), "model must be one of sd15, sdxl, svd, got 'sd3'"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
