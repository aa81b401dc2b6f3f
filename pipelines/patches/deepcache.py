"""deepcache: between full steps a UNet runs its outermost layers only, over deep features of the last full step.

Paper: arXiv:2312.00858, eq. 6 to 10
Shapes: x [N,C,H,W] of a UNet2DConditionModel, or clips of AnimateDiff's and Stable Video Diffusion's UNets
Units and ranges: interval 1 and up, in steps of the loop; start 0..1, share of the steps; branch 0 and up, the skip
    connection, counted from the outermost, within which layers still run; center -1 or 0 and up, in steps; power 1..4;
    order 0..2
Cost: order + 1 feature maps per branch of a guidance of memory; no network evaluations
Neutral: interval = 1 (the network is left alone)
Errors: ValueError for a setting outside its range, a network without the site 'skip', or a branch that it lacks
Differs: the first steps, in which a picture takes shape, are full (start = 0 and order = 0 are the paper's). Rows of a
    call are computed together if one of its branches must be; the uneven steps keep their number by the interval. With
    an order above 0 the features are forecast by finite differences, as arXiv:2503.06923, eq. 3 to 6, forecasts those
    of transformers. Nothing is reused outside the loop. A resumed run begins with a full step
Tasks: image, video
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..moment import Memory
from ..sites import calls, inputs
from ..spacing import Spacing
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
    start: float = 0.25
    """Share of the steps that are full at first, 0..1; the first one always is."""
    center: int = -1
    """Step around which full steps crowd, 0 and up; -1 is the last of the first ones."""
    power: float = 1.0
    """How much they crowd, 1 (evenly) to 4; the paper's p."""
    order: int = 1
    """Highest difference by which the features are forecast, 0..2; 0 repeats those of the last full step."""

    def __post_init__(self) -> None:
        self._spacing()
        if self.branch < 0:
            raise ValueError(f"branch must be 0 or more, got {self.branch}")
        if not 0 <= self.order <= 2:
            raise ValueError(f"order must be in 0..2, got {self.order}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        deep = inside(net, self.branch)
        if self.interval == 1:
            yield
            return
        memory: Memory[Branch] = Memory(Branch)
        call = Call(memory, deep.source, self._spacing(), self.order)
        with ExitStack() as stack:
            stack.enter_context(inputs(net, call.begin))
            for number, module in enumerate(deep.skipped):
                stack.enter_context(calls(module, call.answer(number)))
            yield

    def _spacing(self) -> Spacing:
        return Spacing(self.interval, self.start, self.power, self.center)
