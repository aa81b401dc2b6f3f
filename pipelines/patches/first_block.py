"""first-block: if a transformer's first block does much the same as at an earlier step, the others are passed by.

Paper: arXiv:2411.19108 (TeaCache), section 3.3, with the first block's residual as the indicator, as in
    https://github.com/chengzeyi/ParaAttention
Shapes: streams [N,L,D] of any transformer of the site 'blocks'
Units and ranges: threshold 0 and up, relative change, mean |r - r'| / mean |r'| of the first block's residual r
Cost: 2 streams per stack and branch of memory, and 1 small read from the device per network evaluation
Neutral: threshold = 0 (the network is left alone)
Errors: ValueError for a setting outside its range, or a network without the site 'blocks'
Differs: each row of the batch decides for itself, and takes what it remembers even where other rows make the blocks
    run, so that no picture depends on its neighbours; branches of a guidance never mix. Nothing is reused outside the
    loop. A resumed run begins with an empty cache
Tasks: image, video
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..blocks import Span, Streams, cut, spans, stacks
from ..moment import Memory
from ._reuse import alike, chosen, divided, minus, plus, remembering, together


@dataclass
class _Branch:
    """What one branch added at its last computed step, row by row."""

    head: Tensor | None = None
    tails: dict[int, Streams] = field(default_factory=dict)


@dataclass(frozen=True)
class FirstBlock:
    """Computes the first block, and the rest only where it says something new."""

    slot: ClassVar[str] = "block cache"

    threshold: float = 0.08
    """Relative change of the first block's residual below which the rest is reused, 0 and up; 0 is off."""

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be 0 or more, got {self.threshold}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        first, *others = stacks(net)
        hidden = first[0].hidden
        found = cut([first[:1], first[1:], *others])
        if self.threshold == 0:
            yield
            return
        memory: Memory[_Branch] = Memory(_Branch)
        old = torch.zeros(0, dtype=torch.bool)  # rows of the call at hand that reuse
        passing = False

        def whole(branch: _Branch) -> bool:
            return len(branch.tails) == len(found) - 1

        def decided(residual: Tensor) -> Tensor:
            """Which rows reuse; the others' residual is remembered."""
            answers = []
            for branch, part in zip(memory.branches, residual.chunk(len(memory.branches)), strict=True):
                head = branch.head
                if head is None or not whole(branch) or head.shape != part.shape:
                    branch.head, answer = part, torch.zeros(len(part), dtype=torch.bool, device=part.device)
                else:
                    answer = _change(part, head) < self.threshold
                    (branch.head,) = chosen(answer, (head,), (part,))
                answers.append(answer)
            return torch.cat(answers)

        def enters(span: Span, before: Streams) -> bool:
            return span.index > 0 and passing

        def leaves(span: Span, before: Streams, after: Streams | None) -> Streams:
            nonlocal old, passing
            if memory.step is None:
                assert after is not None
                passing = False
                return after
            if span.index == 0:
                assert after is not None
                old = decided(minus(after, before)[hidden])
                passing = all(map(whole, memory.branches)) and bool(old.all())
                return after
            kept = [branch.tails.get(span.index) for branch in memory.branches]
            if after is None:
                return plus(before, together([tail for tail in kept if tail is not None]))
            _store(memory.branches, span.index, minus(after, before), old)
            if not bool(old.any()):
                return after
            tails = together([branch.tails[span.index] for branch in memory.branches])
            return chosen(old, plus(before, tails), after)

        with remembering(net, memory), spans(found, enters, leaves):
            yield


def _change(new: Tensor, old: Tensor) -> Tensor:
    """Relative mean change of each row, [B]."""
    axes = tuple(range(1, new.ndim))
    return (new - old).abs().mean(axes) / old.abs().mean(axes).clamp_min(1e-12)


def _store(branches: list[_Branch], index: int, tail: Streams, old: Tensor) -> None:
    """Remember what the span added in the rows that were computed for their own sake."""
    parts = divided(tail, len(branches))
    for branch, part, kept in zip(branches, parts, old.chunk(len(branches)), strict=True):
        last = branch.tails.get(index)
        fits = last is not None and alike(last, part)
        branch.tails[index] = chosen(kept, last, part) if fits and last is not None else part
