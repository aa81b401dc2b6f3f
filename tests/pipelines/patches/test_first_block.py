"""first-block: what is computed at which threshold, and the picture against the rule written out by hand."""

from __future__ import annotations

import pytest
import torch
from agreement import relative
from cached import counted, positive, run
from sfumato.pipelines.blocks import cut, spans, stacks
from sfumato.pipelines.patches.first_block import FirstBlock
from tiny_nets import FAMILIES, tiny

STEPS = 6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_huge_threshold_computes_the_first_block_only(family: str) -> None:
    model = tiny(family)
    with counted(model.denoise.net) as seen:
        run(model, FirstBlock(1e6))
    first, *rest = [block.name for stack in stacks(model.denoise.net) for block in stack]
    assert seen == {first: STEPS} | dict.fromkeys(rest, 1)


def test_a_threshold_in_between() -> None:
    model = tiny("flux")
    with counted(model.denoise.net) as seen:
        run(model, FirstBlock(0.75), guidance=positive)
    assert seen["transformer_blocks.0"] == STEPS
    assert 1 < seen["transformer_blocks.1"] == seen["single_transformer_blocks.1"] < STEPS


@pytest.mark.parametrize("family", ["flux", "sd3", "cogview4"])
def test_is_the_rule(family: str) -> None:
    """r the first block's residual: |r - r'| / |r'| < threshold repeats what each stack added, else all is computed."""
    model, threshold = tiny(family), 0.95
    first, *others = stacks(model.denoise.net)
    hidden = first[0].hidden
    found = cut([first[:1], first[1:], *others])
    old: list[torch.Tensor] = []
    tails: dict[int, tuple] = {}
    reused = []

    def enters(span, before) -> bool:
        return span.index > 0 and reused[-1]

    def leaves(span, before, after):
        if span.index == 0:
            r = after[hidden] - before[hidden]
            reused.append(bool(old) and float((r - old[0]).abs().mean() / old[0].abs().mean()) < threshold)
            old[:] = old if reused[-1] else [r]
            return after
        if after is None:
            sums = zip(before, tails[span.index], strict=True)
            return tuple(None if d is None else a + d for a, d in sums)
        tails[span.index] = tuple(None if b is None else b - a for a, b in zip(before, after, strict=True))
        return after

    with spans(found, enters, leaves):
        wanted = run(model, guidance=positive)
    assert {True, False} == set(reused[1:])
    assert relative(run(model, FirstBlock(threshold), guidance=positive), wanted) < 1e-6
