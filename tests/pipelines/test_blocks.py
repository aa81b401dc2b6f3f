"""The site 'blocks': streams in the order in which each family's blocks return them, spans asked before and after."""

from __future__ import annotations

import inspect

import pytest
import torch
from cached import counted
from patched import traceless
from sfumato.pipelines.blocks import STREAMS, cut, spans, stacks
from tiny_nets import FAMILIES, tiny

DEPTHS = {"flux": [2, 2], "flux2": [2, 2], "auraflow": [2, 2], "hunyuan_video": [2, 2], "hunyuan_dit": [6]}


def call(model):
    return model.denoise(model.noise(0, 2), 0.5, *model.conds)[0].x0


@pytest.mark.parametrize("family", FAMILIES)
def test_streams(family) -> None:
    """Each stream comes out in the shape in which it went in, and the first argument is the picture's."""
    model, seen = tiny(family), []
    found = stacks(model.denoise.net)
    assert [len(stack) for stack in found] == DEPTHS.get(family, [3])
    plain = call(model)

    def leaves(span, before, after):
        for name, a, b in zip(span.blocks[0].streams, before, after, strict=True):
            assert a.shape[0] == 4, f"{name} has no rows"
            assert b is None or a.shape == b.shape
        if len(before) == 2:
            assert before[0].shape != before[1].shape  # otherwise the order is not proven
        seen.append(span.index)
        return after

    blocks = [[block] for stack in found for block in stack]
    with traceless(model.denoise.net), spans(cut(blocks), lambda span, before: False, leaves):
        assert torch.equal(call(model), plain)
    assert seen == list(range(len(blocks)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_span_passed_by_is_not_computed(family) -> None:
    """All blocks of a stack at once, whose streams after it are given back: the same picture, without the blocks."""
    model, kept = tiny(family), {}
    found = cut(stacks(model.denoise.net))

    def keep(span, before, after):
        kept[span.index] = after
        return after

    with spans(found, lambda span, before: False, keep):
        plain = call(model)
    with (
        counted(model.denoise.net) as seen,
        spans(found, lambda span, before: True, lambda span, before, after: kept[span.index]),
    ):
        assert torch.equal(call(model), plain)
    assert not seen


def test_every_class_is_one_of_diffusers_with_these_arguments() -> None:
    """Of those that the tiny networks hold; each class named is held by one."""
    held = {}
    for family in FAMILIES:
        for stack in stacks(tiny(family).denoise.net):
            for block in stack:
                held[type(block.module).__name__] = block.module
    assert set(held) == set(STREAMS)
    for name, module in held.items():
        assert set(STREAMS[name]) <= set(inspect.signature(type(module).forward).parameters)
