"""What the routes share: the store of each thread, tokens, rates, what is open to requests, who waits."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fastapi import Request

from ..jobs.home import policy
from ..jobs.ledger import recover
from ..jobs.store import Store
from ..tasks import TASKS, Task
from .answers import rendered
from .inputs import Caps, Inputs
from .metrics import Metrics
from .places import Places
from .rates import Rate
from .serving import Serving
from .tokens import Tokens
from .watch import Watch

LOOK = 5.0
"""Seconds between two looks for runners that died."""
REMEMBERED = 5000
"""Most answers that are kept until something changes."""


class Desk:
    def __init__(
        self,
        serving: Serving,
        home: Path,
        tasks: Sequence[Task] = TASKS,
        runner: Callable[[], bool] | None = None,
    ) -> None:
        self.serving, self.home = serving, home.absolute()
        self.tasks = {task.request.task: task for task in tasks}
        self.runner = runner
        """Whether the runner that came with the server lives; None if there is none."""
        self.tokens = Tokens(self.home)
        self.changes, self.reads = Rate(serving.rate), Rate(serving.reads)
        caps = Caps(serving.upload_bytes, serving.pixels, serving.frames, serving.ratio)
        self.inputs = Inputs(self.home, caps)
        self.places = Places(tuple(Path(path) for path in serving.allow_path), self.home, self.inputs)
        self.metrics = Metrics()
        self.draining = False
        self.model: str | None = None
        """What A1111's options have chosen."""
        self.asked: list[int] = []
        """Jobs for which a client of A1111 waits."""
        self._stores = threading.local()
        self._answers: dict[int, bytes] = {}
        self._answered = -1
        self._watch: Watch | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def store(self) -> Store:
        """This thread's own."""
        found = vars(self._stores).get("store")
        if found is None:
            found = self._stores.store = Store(self.home)
        assert isinstance(found, Store)
        return found

    @property
    def watch(self) -> Watch:
        assert self._watch is not None, "the server has not started"
        return self._watch

    def answer(self, id: int, make: Callable[[Store, int], object]) -> bytes:
        """What is told of a job, made anew only if something has changed. On the event loop: it never waits."""
        version = self.store.version()
        if version != self._answered or len(self._answers) > REMEMBERED:
            self._answers.clear()
            self._answered = version
        if id not in self._answers:
            self._answers[id] = rendered(make(self.store, id))
        return self._answers[id]

    async def run(self) -> None:
        """Watches the store, as long as the server runs."""
        self._watch, self._loop = Watch(self.store.version), asyncio.get_running_loop()
        looking = asyncio.create_task(self._look())
        try:
            await self._watch.run()
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking

    async def _look(self) -> None:
        while True:
            with suppress(sqlite3.Error, OSError):  # a full disk, say; the next look may find it better
                await asyncio.to_thread(lambda: recover(self.store, policy().strikes))
            await asyncio.sleep(LOOK)

    def drain(self) -> None:
        """No new jobs; who waits is told. May be called by a signal."""
        self.draining = True
        if self._loop is not None and self._watch is not None:
            self._loop.call_soon_threadsafe(self._watch.wake)


async def desk_of(request: Request) -> Desk:
    found = request.app.state.desk
    assert isinstance(found, Desk)
    return found
