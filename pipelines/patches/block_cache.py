"""block-cache: blocks of a transformer add again what they added, at every other step or by a table (alias harmonica).

Paper: arXiv:2407.01425 (FORA), section 3.2, for the interval; arXiv:2406.01733 (Learning-to-Cache), eq. 6, for a table;
    arXiv:2410.01723 (HarmoniCa) for tables that are learned: `sfumato train harmonica NAME -o FILE` writes one
Shapes: streams [N,L,D] of any transformer of the site 'blocks'
Units and ranges: interval 1 and up, in steps of the loop; table a JSON file of [steps][blocks] of 0 and 1
Cost: 1 or 2 streams per block and branch of memory; no network evaluations
Neutral: interval = 1 without a table (the network is left alone)
Errors: ValueError for an interval below 1, or a network without the site 'blocks'; BadInput for a table that cannot be
    read, or was made for another order, network or number of steps
Differs: whole blocks where the papers cache attention and MLP apart. A branch that has nothing to reuse is computed,
    whatever the table says, so the first step always is. Nothing is reused outside the loop. A resumed run begins with
    an empty cache
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
from ._reuse import Due, forecast
from ._table import obeyed


@dataclass(frozen=True)
class BlockCache:
    """Blocks repeat themselves between the steps at which they are computed."""

    slot: ClassVar[str] = "block cache"

    interval: int = 2
    """Steps from one computation of the blocks to the next, 1 and up; 1 is off."""
    table: str = ""
    """File of a table made by the recipe `harmonica`, which takes the interval's place; empty for none."""

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be 1 or more, got {self.interval}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        blocks = [block for stack in stacks(net) for block in stack]
        if not self.table and self.interval == 1:
            yield
            return
        due = obeyed(self.table, net, 0) if self.table else _every(self.interval)
        with forecast(net, cut([[block] for block in blocks]), kept=1, due=due, weights=_last):
            yield


def _last(steps: object, now: int) -> tuple[float]:
    """What was added last, as it was."""
    return (1.0,)


def _every(interval: int) -> Due:
    def due(step: Step, span: Span, last: int) -> bool:
        return step.index % interval == 0 or step.index - last >= interval

    return due
