"""deepcache: between full steps a UNet runs its outermost layers only, over deep features of the last full step.

Paper: arXiv:2312.00858, eq. 6 to 10
Shapes: x [N,C,H,W] of a UNet2DConditionModel, or clips of AnimateDiff's and Stable Video Diffusion's UNets
Units and ranges: interval 1 and up, in steps of the loop; branch 0 and up, the skip connection, counted from the
    outermost, within which layers still run; center -1 (even) or 0 and up, in steps; power 1..4
Cost: 1 feature map per branch of a guidance of memory; no network evaluations
Neutral: interval = 1 (the network is left alone)
Errors: ValueError for a setting outside its range, a network without the site 'skip', or a branch that it lacks
Differs: rows of a call are computed together if one of its branches must be; the uneven steps keep their number by the
    interval and not by a fixed power. Nothing is reused outside the loop. A resumed run begins with a full step
Tasks: image, video
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..moment import Memory, Step, keys
from ..sites import Answer, calls, inputs
from ._reuse import chosen, flags
from ._skips import blank, inside, shapes


@dataclass
class _Branch:
    """What one branch keeps of its last full step."""

    step: int = -1
    size: tuple[int, ...] = ()
    """Of its part of the network's input."""
    feature: Tensor = field(default_factory=lambda: torch.empty(0))
    shapes: dict[int, Any] = field(default_factory=dict)
    """Of what each module that can be passed by gives, see `shapes`."""


@dataclass(frozen=True)
class DeepCache:
    """Reuses the deep features of a UNet."""

    slot: ClassVar[str] = "block cache"

    interval: int = 3
    """Steps from one full evaluation to the next, 1 and up; 1 is off."""
    branch: int = 0
    """Skip connection within which layers run at each step, 0 and up; 0 is the outermost and fastest."""
    center: int = -1
    """Step around which full steps crowd, 0 and up; -1 spaces them evenly."""
    power: float = 1.2
    """How much they crowd, 1 (evenly) to 4; the paper's p."""

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be 1 or more, got {self.interval}")
        if self.branch < 0 or self.center < -1:
            raise ValueError(
                f"branch must be 0 or more and center -1 or more, got {self.branch}, {self.center}"
            )
        if not 1 <= self.power <= 4:
            raise ValueError(f"power must be in 1..4, got {self.power}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        deep = inside(net, self.branch)
        if self.interval == 1:
            yield
            return
        memory: Memory[_Branch] = Memory(_Branch)
        call = _Call(memory, deep.source, self._due)
        with ExitStack() as stack:
            stack.enter_context(inputs(net, call.begin))
            for number, module in enumerate(deep.skipped):
                stack.enter_context(calls(module, call.answer(number)))
            yield

    def _due(self, step: Step, last: int) -> bool:
        if self.center < 0:
            return step.index % self.interval == 0 or step.index - last >= self.interval
        return step.index in _uneven(step.steps, self.interval, self.center, self.power)


def _uneven(steps: int, interval: int, center: int, power: float) -> set[int]:
    """The full steps: evenly spaced after |step - center|^(1 / power) keeps the side, and back (eq. 9 and 10)."""

    def bent(value: float, exponent: float) -> float:
        return float((value > 0) - (value < 0)) * abs(value) ** exponent

    low, high = bent(-center, 1 / power), bent(steps - center, 1 / power)
    count = -(-steps // interval)
    marks = (low + (high - low) * i / count for i in range(count))
    return {0} | {min(max(int(bent(mark, power)) + center, 0), steps - 1) for mark in marks}


class _Call:
    """The network call at hand."""

    def __init__(self, memory: Memory[_Branch], source: int, due: Callable[[Step, int], bool]) -> None:
        self.memory = memory
        self.source = source
        self.due = due
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
            self.reuse.append(branch.size == size and not self.due(step, branch.step))
            if not self.reuse[-1]:
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
                feature = torch.cat([branch.feature for branch in branches])
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
                branch.feature = part.clone()  # an adapter may add to what goes on, in place
        if any(self.reuse):
            kept = torch.cat([branch.feature for branch in self.memory.branches])
            (feature,) = chosen(flags(self.reuse, len(feature), feature.device), (kept,), (feature,))
        return (feature, *out[1:]) if isinstance(out, tuple) else feature
