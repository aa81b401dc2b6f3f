"""What a processor's memory allocator holds for a run of requests: more than is in use, since gaps between blocks stay.

As glibc does it: a block above a threshold is mapped by itself and given back to the system when it is freed; a smaller
one lies in the heap, in the smallest gap that it fits, else at the top. Only the top is given back, and the threshold
follows the largest block that was freed, up to 32 MiB. So a run whose tensors are of some megabytes may hold half as
much again as they take, and one of large tensors holds what it needs.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

FIRST, LAST = 128 << 10, 32 << 20
"""The threshold as a process begins, and where it ends. Bytes."""
HEAD, ALIGNED = 64, 16
"""Bytes beside a block, torch's own alignment included, and what sizes are a multiple of."""


class Event(NamedTuple):
    """A block that is taken, or is freed where `size` is 0."""

    block: int
    size: int


def held(events: Sequence[Event]) -> int:
    """The most bytes at once, in a process that has just begun or one that has run for long, whichever holds more."""
    return max(_Heap(threshold).run(events) for threshold in (FIRST, LAST))


class _Heap:
    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self.top = self.mapped = self.peak = 0
        self.gaps: list[tuple[int, int]] = []
        """First and last-but-one byte, in order."""
        self.blocks: dict[int, tuple[int, int]] = {}
        """Where a block begins, -1 if it is mapped by itself, and its size."""

    def run(self, events: Sequence[Event]) -> int:
        for block, size in events:
            if size:
                self._take(block, -(-(size + HEAD) // ALIGNED) * ALIGNED)
            elif block in self.blocks:
                self._free(*self.blocks.pop(block))
        return self.peak

    def _take(self, block: int, size: int) -> None:
        if size >= self.threshold:
            self.mapped += size
            self.blocks[block] = (-1, size)
        else:
            self.blocks[block] = (self._place(size), size)
        self.peak = max(self.peak, self.top + self.mapped)

    def _place(self, size: int) -> int:
        fitting = ((end - start, i) for i, (start, end) in enumerate(self.gaps) if end - start >= size)
        _, i = min(fitting, default=(0, -1))
        if i < 0:
            start = self.gaps.pop()[0] if self.gaps and self.gaps[-1][1] == self.top else self.top
            self.top = start + size
            return start
        start, end = self.gaps[i]
        self.gaps[i : i + 1] = [(start + size, end)] if end - start > size else []
        return start

    def _free(self, start: int, size: int) -> None:
        if start < 0:
            self.mapped -= size
            self.threshold = max(self.threshold, size) if size <= LAST else self.threshold
            return
        end = start + size
        i = bisect.bisect(self.gaps, (start, end))
        if i < len(self.gaps) and self.gaps[i][0] == end:
            end = self.gaps.pop(i)[1]
        if i and self.gaps[i - 1][1] == start:
            i -= 1
            start = self.gaps.pop(i)[0]
        if end == self.top and end - start > 2 * self.threshold:
            self.top = start
        else:
            self.gaps.insert(i, (start, end))
