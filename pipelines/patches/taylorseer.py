"""taylorseer: what blocks add is forecast from the steps before by finite differences.

Paper: arXiv:2503.06923, eq. 3 to 6
Shapes: streams [N,L,D] of any transformer of the site 'blocks'
Units and ranges: interval 1 and up and warmup 1 and up, in steps of the loop; order 0..2; table a JSON file of
    [steps][blocks] of 0 and 1
Cost: order + 1 times 1 or 2 streams per block (per stack, if `whole`) and branch of memory; no network evaluations
Neutral: interval = 1 without a table (the network is left alone)
Errors: ValueError for a setting outside its range, a table for whole stacks, or a network without the site 'blocks';
    BadInput for a table that cannot be read, or was made for another network or number of steps
Differs: whole blocks, or whole stacks of them, where the paper forecasts attention and MLP apart; `newton` weighs the
    same differences so that polynomials of the order come out exactly, which the paper's sum does up to order 1 only.
    Lower orders while fewer steps are known. Nothing is forecast outside the loop. A resumed run begins anew
Tasks: image, video
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..blocks import Span, cut, stacks
from ..moment import Step
from ._reuse import forecast
from ._table import obeyed
from ._weights import newton, taylor


@dataclass(frozen=True)
class TaylorSeer:
    """Computes the blocks at every interval-th step and forecasts them in between."""

    slot: ClassVar[str] = "block cache"

    interval: int = 4
    """Steps from one computation of the blocks to the next, 1 and up; 1 is off."""
    order: int = 1
    """Highest difference, 0..2; 0 repeats what was added last."""
    warmup: int = 3
    """First steps, all of them computed, 1 and up."""
    whole: bool = False
    """Forecast each stack as one, which takes less memory; else each block by itself."""
    newton: bool = False
    """Newton's weights of the differences instead of Taylor's."""
    table: str = ""
    """File of a table made by the recipe `harmonica`, in the place of interval and warmup; empty for none."""

    def __post_init__(self) -> None:
        if self.interval < 1 or self.warmup < 1:
            raise ValueError(f"interval and warmup must be 1 or more, got {self.interval} and {self.warmup}")
        if not 0 <= self.order <= 2:
            raise ValueError(f"order must be in 0..2, got {self.order}")
        if self.table and self.whole:
            raise ValueError("a table is for blocks by themselves; leave out whole")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        parts = stacks(net)
        if self.interval == 1 and not self.table:
            yield
            return
        due = obeyed(self.table, net, self.order) if self.table else self._due
        found = cut(parts if self.whole else [[block] for stack in parts for block in stack])
        weights = newton if self.newton else taylor
        with forecast(net, found, kept=self.order + 1, due=due, weights=weights):
            yield

    def _due(self, step: Step, span: Span, last: int) -> bool:
        early, late = step.index < self.warmup, step.index - last >= self.interval
        return early or late or (step.index - self.warmup + 1) % self.interval == 0
