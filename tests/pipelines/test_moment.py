"""The step and the keys at hand: said by the loop and the denoiser, gone afterwards, and what memory makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from cached import OneByOne
from sfumato.pipelines import moment
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.moment import Memory, Step, evaluating, stepping
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.protocols import Cond
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.samplers.heun import heun
from sfumato.pipelines.sites import inputs
from tiny_nets import tiny

TS = [1.0, 0.6, 0.3, 0.0]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("sampler", "times"), [(Ddim(), 1), (heun, 2)])
def test_a_network_knows_the_step_and_whom_it_answers(sampler: Any, times: int, apart: bool) -> None:
    model = tiny("flux")
    seen: list[tuple[int, tuple[str, ...]]] = []

    def look(given: Mapping[str, Any]) -> Mapping[str, Any]:
        now = moment.step()
        assert now is not None and now.steps == 3
        seen.append((now.index, moment.keys()))
        return {}

    denoise = OneByOne(model.denoise) if apart else model.denoise
    with inputs(model.denoise.net, look):
        Pipeline(denoise, sampler, Cfg(3.0))(model.noise(0), model.conds, TS)
    calls = [("pos",), ("neg",)] if apart else [("pos", "neg")]
    evaluations = [times, times, 1]  # Heun's last step goes to sigma = 0 at once
    assert seen == [(i, keys) for i, n in enumerate(evaluations) for _ in range(n) for keys in calls]
    assert moment.step() is None and moment.keys() == ()


def test_conditions_of_unlike_shapes_are_told_apart() -> None:
    model = tiny("flux")
    seen: list[tuple[str, ...]] = []
    short = Cond("short", {**model.conds.pos.embeds, "text": torch.zeros(1, 3, 32)})
    assert model.conds.neg is not None

    def look(given: Mapping[str, Any]) -> Mapping[str, Any]:
        seen.append(moment.keys())
        return {}

    with inputs(model.denoise.net, look):
        model.denoise(model.noise(0), 0.5, model.conds.pos, short, model.conds.neg)
    assert seen == [("pos", "neg"), ("short",)]


def test_gone_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), stepping(Step(0, 1, object())), evaluating(["a"]):
        raise ZeroDivisionError
    assert moment.step() is None and moment.keys() == ()


def test_memory_is_one_for_each_key_and_evaluation_of_a_step() -> None:
    memory: Memory[list[int]] = Memory(list)
    this = object()

    def turn(step: Step, *keys: str) -> list[list[int]]:
        with stepping(step):
            memory.turn(keys)
        return memory.branches

    first = Step(0, 3, this)
    a, b = turn(first, "a", "b")
    again, _ = turn(first, "a", "b")
    assert len({id(a), id(b), id(again)}) == 3  # a second tile, or Heun's second evaluation
    second = Step(1, 3, this)
    assert [id(m) for m in turn(second, "b", "a")] == [id(b), id(a)]
    assert turn(second, "a")[0] is again
    assert [id(m) for m in turn(Step(2, 3, this), "a", "a")] == [id(a), id(again)]
    assert turn(Step(0, 3, object()), "a")[0] is not a  # another run


def test_no_memory_outside_the_loop_or_a_denoiser() -> None:
    memory: Memory[list[int]] = Memory(list)
    memory.turn(("a",))
    assert memory.step is None and memory.branches == []
    with stepping(Step(0, 1, object())):
        memory.turn(())
    assert memory.step is None and memory.branches == []
