"""cfg-skip: which steps evaluate the negative, the kept difference by hand, and x kept together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached import OneByOne, run
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.guidance.cfg_skip import CfgSkip
from sfumato.pipelines.moment import Step, stepping
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.protocols import Pred
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.samplers.heun import heun
from tiny_nets import tiny
from toys import GaussianDenoiser, ToyDenoiser, biases, means, paths

PATHS = paths()
BOTH, ONE = ("pos", "neg"), ("pos",)


def times(path: Any, steps: int = 6) -> list[float]:
    last = path.last if path.name == "ve" else 0.02
    return [path.start * (1 - i / steps) + last * i / steps for i in range(steps + 1)]


def go(
    denoise: Any, guidance: Any, conds: Any, count: int = 1, seed: int = 0, sampler: Any = None
) -> torch.Tensor:
    noise = SeededNoise.batch(seed, count, (4, 5, 5))
    return Pipeline(denoise, sampler or Ddim(), guidance)(noise(), conds, times(denoise.path))


@pytest.mark.parametrize(
    ("guidance", "wanted"),
    [
        (CfgSkip(3.0, 2, 0.0), [BOTH, ONE, BOTH, ONE, BOTH, ONE]),
        (CfgSkip(3.0, 3, 0.0), [BOTH, ONE, ONE, BOTH, ONE, ONE]),
        (CfgSkip(3.0, 2, 0.5), [BOTH, BOTH, BOTH, ONE, BOTH, ONE]),
        (CfgSkip(3.0, 100, 1.0), [BOTH] * 6),
        (CfgSkip(3.0, 3, 0.4, power=2.0), [BOTH, BOTH, BOTH, BOTH, ONE, ONE]),
        (CfgSkip(3.0, 1, 0.0), [BOTH] * 6),
        (CfgSkip(1.0), [ONE] * 6),
    ],
)
def test_when_the_negative_is_evaluated(guidance: CfgSkip, wanted: list) -> None:
    denoise = ToyDenoiser(PATHS["flow"])
    go(denoise, guidance, biases())
    assert denoise.keys == wanted


@pytest.mark.parametrize("path", PATHS)
def test_neutral(path: str) -> None:
    denoise = ToyDenoiser(PATHS[path])
    assert go(denoise, CfgSkip(3.0, 1), biases()).equal(go(denoise, Cfg(3.0), biases()))
    assert go(denoise, CfgSkip(1.0), biases(neg=None)).equal(go(denoise, Cfg(1.0), biases(neg=None)))


def test_by_hand_on_flow() -> None:
    """The velocity eps - x0 gets (scale - 1) times its last difference."""
    path, x = PATHS["flow"], torch.randn(1, 4, 3, 3)
    denoise, this = ToyDenoiser(path), object()
    predict = CfgSkip(4.0, 2, 0.0)(denoise, biases())
    with stepping(Step(0, 2, this)):
        predict(x, 0.8)
    with stepping(Step(1, 2, this)):
        got = predict(x, 0.5)

    def velocity(p: Pred) -> torch.Tensor:
        return p.eps - p.x0

    pos, neg = denoise(x, 0.8, *biases())
    wanted = velocity(denoise(x, 0.5, biases().pos)[0]) + 3.0 * (velocity(pos) - velocity(neg))
    torch.testing.assert_close(velocity(got), wanted)


@pytest.mark.parametrize("path", PATHS)
def test_x0_and_eps_belong_to_x_and_the_difference_fits_the_step_it_was_made_at(path: str) -> None:
    p, this = PATHS[path], object()
    denoise, x = GaussianDenoiser(p, 0.5), torch.randn(2, 4, dtype=torch.float64)
    predict = CfgSkip(3.0, 9, 0.0)(denoise, means())
    full = Cfg(3.0)(denoise, means())
    for i, t in enumerate((p.start, 0.99 * p.start, 0.5 * p.start, 0.05)):
        with stepping(Step(i, 4, this)):
            got = predict(x, t)
        assert torch.isfinite(got.x0).all() and torch.isfinite(got.eps).all()
        torch.testing.assert_close(p.alpha(t) * got.x0 + p.sigma(t) * got.eps, x, rtol=1e-9, atol=1e-9)
        if i == 1:  # a small step later the difference is still nearly right
            wrong = (got.eps - full(x, t).eps).norm() / (
                full(x, t).eps - denoise(x, t, means().pos)[0].eps
            ).norm()
            assert wrong < 0.2
    assert denoise.keys.count(BOTH) >= 1


def test_outside_the_loop_it_is_cfg() -> None:
    denoise, x = ToyDenoiser(PATHS["flow"]), torch.randn(1, 4, 3, 3)
    predict = CfgSkip(4.0, 5, 0.0)(denoise, biases())
    for t in (0.9, 0.8):
        assert predict(x, t).x0.equal(Cfg(4.0)(denoise, biases())(x, t).x0)


@pytest.mark.parametrize("sampler", [Ddim(), heun])
def test_twice_is_once_and_a_batch_is_its_singles(sampler: Any) -> None:
    denoise = ToyDenoiser(PATHS["flow"])

    def made(count: int, seed: int) -> torch.Tensor:
        return go(denoise, CfgSkip(3.0, 3, 0.0), biases(), count, seed, sampler)

    assert made(2, 2).equal(made(2, 2))
    torch.testing.assert_close(made(2, 2), torch.cat([made(1, 2), made(1, 3)]), rtol=0, atol=1e-5)


def test_on_a_network_one_by_one() -> None:
    model = tiny("flux")
    felt = run(model, guidance=CfgSkip(3.0, 2, 0.0))
    assert not felt.equal(run(model)) and torch.isfinite(felt).all()
    assert (
        run(model, guidance=CfgSkip(3.0, 2, 0.0), denoise=OneByOne(model.denoise)) - felt
    ).norm() < 1e-4 * felt.norm()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CfgSkip(-1.0), "scale must be in 0..100, got -1.0"),
        (lambda: CfgSkip(interval=0), "interval must be 1 or more, got 0"),
        (lambda: CfgSkip(start=1.5), "start must be in 0..1, got 1.5"),
        (
            lambda: CfgSkip()(ToyDenoiser(PATHS["flow"]), biases(neg=None)),
            "cfg-skip needs a negative condition",
        ),
    ],
)
def test_what_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
