"""deepcache: between full steps a UNet runs its outermost layers only, over deep features of the last full step.

Paper: arXiv:2312.00858, eq. 6 to 10
Shapes: x [N,C,H,W] of a UNet2DConditionModel, or clips of AnimateDiff's and Stable Video Diffusion's UNets
Units and ranges: interval 1 and up, in steps of the loop; branch 0 and up, the skip connection, counted from the
    outermost, within which layers still run; center -1 (even) or 0 and up, in steps; power 1..4; order 0..2
Cost: order + 1 feature maps per branch of a guidance of memory; no network evaluations
Neutral: interval = 1 (the network is left alone)
Errors: ValueError for a setting outside its range, a network without the site 'skip', or a branch that it lacks
Differs: rows of a call are computed together if one of its branches must be; the uneven steps keep their number by the
    interval and not by a fixed power. With an order above 0 the features are forecast by finite differences, as
    arXiv:2503.06923, eq. 3 to 6, forecasts those of transformers. Nothing is reused outside the
    loop. A resumed run begins with a full step
Tasks: image, video
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..moment import Memory, Step
from ..sites import calls, inputs
from ._deep import Branch, Call
from ._skips import inside


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
    order: int = 0
    """Highest difference by which the features are forecast, 0..2; 0 repeats those of the last full step."""

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be 1 or more, got {self.interval}")
        if self.branch < 0 or self.center < -1:
            raise ValueError(
                f"branch must be 0 or more and center -1 or more, got {self.branch}, {self.center}"
            )
        if not 1 <= self.power <= 4:
            raise ValueError(f"power must be in 1..4, got {self.power}")
        if not 0 <= self.order <= 2:
            raise ValueError(f"order must be in 0..2, got {self.order}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        deep = inside(net, self.branch)
        if self.interval == 1:
            yield
            return
        memory: Memory[Branch] = Memory(Branch)
        call = Call(memory, deep.source, self._due, self.order)
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
