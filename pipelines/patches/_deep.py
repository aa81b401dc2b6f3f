"""A UNet's call without its deep layers: what they gave at full steps is remembered, and forecast in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..moment import Memory, keys
from ..sites import Answer
from ..spacing import Spacing
from ._reuse import chosen, flags
from ._skips import blank, shapes
from ._weights import taylor


@dataclass
class Branch:
    """What one branch keeps of its last full steps."""

    step: int = -1
    size: tuple[int, ...] = ()
    """Of its part of the network's input."""
    features: deque[tuple[int, Tensor]] = field(default_factory=deque)
    """(step, deep feature), newest first."""
    shapes: dict[int, Any] = field(default_factory=dict)
    """Of what each module that can be passed by gives, see `shapes`."""


class Call:
    """The network call at hand."""

    def __init__(self, memory: Memory[Branch], source: int, spacing: Spacing, order: int) -> None:
        self.memory = memory
        self.source = source
        self.spacing = spacing
        self.order = order
        self.reuse: list[bool] = []  # of each branch; empty outside the loop
        self.sample = torch.empty(0)

    def begin(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        self.memory.turn(keys())
        self.sample, self.reuse = given["sample"], []
        step = self.memory.step
        if step is None:
            return {}
        size = (len(self.sample) // len(self.memory.branches), *self.sample.shape[1:])
        for branch in self.memory.branches:
            due = self.spacing.due(step.steps, step.index, branch.step)
            self.reuse.append(branch.size == size and not due)
            if not self.reuse[-1]:
                if branch.size != size or branch.step > step.index:
                    branch.features.clear()
                branch.step, branch.size = step.index, size
        return {}

    def answer(self, number: int) -> Answer:
        def answer(given: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
            branches = self.memory.branches
            if not self.reuse or not all(self.reuse):
                out = compute()
                for branch in branches if self.reuse else ():
                    branch.shapes[number] = shapes(out, len(branches))
                return self._kept(out) if number == self.source and self.reuse else out
            if number == self.source:
                feature = torch.cat([self._forecast(branch) for branch in branches])
                return (feature,) if isinstance(branches[0].shapes[number], list) else feature
            return blank(self.sample, branches[0].shapes[number], len(branches))

        return answer

    def _kept(self, out: Any) -> Any:
        """Remember the feature; rows that could have done without this step take what they remember."""
        feature = out[0] if isinstance(out, tuple) else out
        for branch, part, old in zip(
            self.memory.branches, feature.chunk(len(self.reuse)), self.reuse, strict=True
        ):
            if not old:
                if branch.features and branch.features[0][0] == branch.step:  # an earlier call of this step
                    branch.features.popleft()
                branch.features.appendleft((branch.step, part.clone()))  # an adapter may add to it in place
                while len(branch.features) > self.order + 1:
                    branch.features.pop()
        if any(self.reuse):
            kept = torch.cat([self._forecast(branch) for branch in self.memory.branches])
            (feature,) = chosen(flags(self.reuse, len(feature), feature.device), (kept,), (feature,))
        return (feature, *out[1:]) if isinstance(out, tuple) else feature

    def _forecast(self, branch: Branch) -> Tensor:
        """What the full steps tell of this one; the last one's own features, to the bit, where one is known."""
        assert self.memory.step is not None
        steps, features = zip(*branch.features, strict=True)
        if len(steps) == 1 or steps[0] == self.memory.step.index:
            return cast("Tensor", features[0])
        weights = taylor(steps, self.memory.step.index)
        return cast("Tensor", sum(weight * part for weight, part in zip(weights, features, strict=True)))
