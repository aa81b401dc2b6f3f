"""What the caches share: sums of streams, rows of a batch, and spans of blocks forecast from steps before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..blocks import Span, Streams, spans
from ..moment import Memory, Step, keys
from ..sites import inputs

S = TypeVar("S")
Due = Callable[[Step, Span, int], bool]
"""(step, span, the step at which it was last computed) -> whether to compute it now."""
Weights = Callable[[Sequence[int], int], Sequence[float]]
"""(steps that are remembered, newest first; step at hand) -> weights of what is remembered."""
History = dict[int, deque[tuple[int, Streams]]]
"""Span -> (step, what the span added to each stream), newest first."""


@contextmanager
def remembering(net: nn.Module, memory: Memory[S]) -> Iterator[None]:
    """Let the memory turn to each call's conditions before it begins."""

    def begin(given: Mapping[str, Any]) -> Mapping[str, Any]:
        memory.turn(keys())
        return {}

    with inputs(net, begin):
        yield


def minus(a: Streams, b: Streams) -> Streams:
    return tuple(None if p is None or q is None else p - q for p, q in zip(a, b, strict=True))


def plus(a: Streams, b: Streams) -> Streams:
    return tuple(None if p is None or q is None else p + q for p, q in zip(a, b, strict=True))


def weighed(weights: Sequence[float], parts: Sequence[Streams]) -> Streams:
    """The sum of the parts by their weights; one part of weight 1 is itself, to the bit."""
    if list(weights) == [1.0]:
        return parts[0]
    return tuple(
        None if stream[0] is None else sum(w * p for w, p in zip(weights, stream, strict=True))
        for stream in zip(*parts, strict=True)
    )


def divided(streams: Streams, count: int) -> list[Streams]:
    """The rows of each of `count` conditions."""
    parts = [[None] * count if s is None else list(s.chunk(count)) for s in streams]
    return list(zip(*parts, strict=True))


def together(parts: Sequence[Streams]) -> Streams:
    """The rows of all conditions, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return tuple(None if some[0] is None else torch.cat(some) for some in zip(*parts, strict=True))


def chosen(old: Tensor, a: Streams, b: Streams) -> Streams:
    """Rows of `a` where `old` [N] is true, else of `b`."""

    def pick(p: Tensor | None, q: Tensor | None) -> Tensor | None:
        return q if p is None or q is None else torch.where(old.view(-1, *[1] * (p.ndim - 1)), p, q)

    return tuple(pick(p, q) for p, q in zip(a, b, strict=True))


def alike(a: Streams, b: Streams) -> bool:
    """Whether they have the same shapes; a dropped stream fits any."""
    return all(p is None or q is None or p.shape == q.shape for p, q in zip(a, b, strict=True))


def flags(values: Sequence[bool], rows: int, device: torch.device) -> Tensor:
    """[rows] of one value per condition."""
    return torch.tensor(values, device=device).repeat_interleave(rows // len(values))


def first(streams: Streams) -> Tensor:
    return next(s for s in streams if s is not None)


@contextmanager
def forecast(
    net: nn.Module, found: Sequence[Span], *, kept: int, due: Due, weights: Weights
) -> Iterator[None]:
    """Pass spans by that are not due, adding the weighed sum of what they added at the last `kept` steps.

    A branch without a memory that fits is computed. As the rows of a call are computed together, those of a branch
    that could have passed the span by take what they remember, so that no branch depends on what shares its call.
    """
    memory: Memory[History] = Memory(dict)

    def passing(span: Span, streams: Streams) -> list[bool]:
        step = memory.step
        if step is None:
            return []
        answers = []
        for history, part in zip(
            memory.branches, divided(streams, max(len(memory.branches), 1)), strict=False
        ):
            past = history.get(span.index)
            fits = bool(past) and past is not None and alike(past[0][1], part)
            answers.append(fits and past is not None and not due(step, span, past[0][0]))
        return answers

    def added(span: Span, branches: Sequence[History], now: int) -> Streams:
        parts = []
        for history in branches:
            past = history[span.index]
            parts.append(weighed(weights([at for at, _ in past], now), [value for _, value in past]))
        return together(parts)

    def enters(span: Span, before: Streams) -> bool:
        answers = passing(span, before)
        return bool(answers) and all(answers)

    def leaves(span: Span, before: Streams, after: Streams | None) -> Streams:
        step = memory.step
        if step is None:
            assert after is not None
            return after
        if after is None:
            return plus(before, added(span, memory.branches, step.index))
        answers = passing(span, before)
        parts = divided(minus(after, before), len(answers))
        for history, passed, part in zip(memory.branches, answers, parts, strict=True):
            if not passed:
                _remember(history, span, step.index, part, kept)
        if not any(answers):
            return after
        stored = [
            part if not passed else added(span, [history], step.index)
            for history, passed, part in zip(memory.branches, answers, parts, strict=True)
        ]
        some = first(after)
        return chosen(flags(answers, len(some), some.device), plus(before, together(stored)), after)

    with remembering(net, memory), spans(found, enters, leaves):
        yield


def _remember(history: History, span: Span, now: int, part: Streams, kept: int) -> None:
    past = history.setdefault(span.index, deque(maxlen=kept))
    if past and not alike(past[0][1], part):
        past.clear()  # the picture's size has changed
    past.appendleft((now, part))
