"""The pipeline: order of techniques, slots, and patches that come undone."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import pytest
import torch
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.guidance.cfgpp import Cfgpp
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.protocols import Pred
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.samplers.heun import heun
from sfumato.pipelines.samplers.unipc import Unipc
from sfumato.pipelines.sites import swap
from toys import ToyDenoiser, biases, paths


@dataclass(frozen=True)
class Sharper:
    slot: ClassVar[str] = "attention"
    gain: float = 1.5

    @contextmanager
    def __call__(self, net):
        full = net.attention
        with swap(net, "attention", lambda layer, q, k, v: full(layer, self.gain * q, k, v)):
            yield


@dataclass(frozen=True)
class Value:
    slot: ClassVar[str] = "attention"

    @contextmanager
    def __call__(self, net):
        with swap(net, "attention", lambda layer, q, k, v: v):
            yield


def double(predict, path):
    return lambda x, t: Pred(*(2 * part for part in predict(x, t)))


def add_one(predict, path):
    return lambda x, t: Pred(*(1 + part for part in predict(x, t)))


def test_two_techniques_for_one_slot_are_refused():
    with pytest.raises(ValueError, match="Sharper and Value both need the slot 'attention'"):
        Pipeline(ToyDenoiser(paths()["flow"]), patches=(Sharper(), Value()))
    Pipeline(ToyDenoiser(paths()["flow"]), patches=(Sharper(),))


def test_the_first_wrap_is_innermost():
    x = torch.ones(1, 4, 3, 3)
    pipe = Pipeline(ToyDenoiser(paths()["flow"]), guidance=Cfg(1.0), wraps=(double, add_one))
    bare = Pipeline(ToyDenoiser(paths()["flow"]), guidance=Cfg(1.0))
    with pipe.predictor(biases()) as wrapped, bare.predictor(biases()) as plain:
        torch.testing.assert_close(wrapped(x, 0.5).x0, 1 + 2 * plain(x, 0.5).x0)


def test_patches_act_and_leave_no_trace():
    denoise = ToyDenoiser(paths()["flow"])
    noise = SeededNoise.batch(0, 1, (4, 3, 3))()
    before = dict(vars(denoise.net))
    plain = Pipeline(denoise)(noise, biases(), [1.0, 0.5, 0.0])
    patched = Pipeline(denoise, patches=(Sharper(),))(noise, biases(), [1.0, 0.5, 0.0])
    assert not torch.equal(plain, patched)
    assert dict(vars(denoise.net)) == before
    assert torch.equal(Pipeline(denoise, patches=(Sharper(1.0),))(noise, biases(), [1.0, 0.5, 0.0]), plain)

    class Boom(Exception):
        pass

    def explode(predict, path):
        def exploding(x, t):
            raise Boom

        return exploding

    with pytest.raises(Boom):
        Pipeline(denoise, patches=(Sharper(),), wraps=(explode,))(noise, biases(), [1.0, 0.0])
    assert dict(vars(denoise.net)) == before


def test_combinations_are_finite_and_keys_are_distinct():
    for path, sampler, guide, patches in product(
        ("vp0", "flow3", "ve"), (Ddim(0.5), heun, Unipc()), (Cfg(4.0), Cfgpp()), ((), (Value(),))
    ):
        denoise = ToyDenoiser(paths()[path])
        p = denoise.path
        noise = SeededNoise.batch(0, 1, (4, 3, 3))
        x = p.sigma(p.start) * noise()
        got = Pipeline(denoise, sampler, guide, patches)(x, biases(), [p.start, 0.6, 0.2, p.end], noise=noise)
        assert torch.isfinite(got).all()
        assert all(len(set(keys)) == len(keys) for keys in denoise.keys)


def test_the_sampler_sees_no_gradient_graph():
    x = torch.zeros(1, 4, 3, 3, requires_grad=True)
    assert not Pipeline(ToyDenoiser(paths()["flow"]))(x, biases(), [1.0, 0.0]).requires_grad
