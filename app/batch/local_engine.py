"""A batch in this process: one worker, group after group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from ...pipelines.stopping import Stopped
from .parcels import Answer, Asked, Counts, Fault, Group, Look
from .worker import Worker


@dataclass
class LocalEngine:
    worker: Worker = field(default_factory=Worker)

    def look(self, rows: Sequence[Asked], per_batch: int) -> list[Look | Fault]:
        return self.worker.look(rows, per_batch)

    def run(
        self, groups: Sequence[Group], stopped: Callable[[], bool], within: Callable[[int], None]
    ) -> Iterator[Answer]:
        self.worker.stopped = stopped
        for group in groups:
            if stopped():
                return
            self.worker.step = partial(_within, within, group.cost)
            try:
                yield Answer(group, self.worker.run(group), "here")
            except Stopped:
                return

    def counts(self) -> Counts:
        return self.worker.counts()

    def close(self) -> None:
        self.worker.shelf.clear()


def _within(told: Callable[[int], None], cost: int, done: int, total: int) -> None:
    told(cost * done // max(total, 1))
