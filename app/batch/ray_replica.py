"""Jobs on Ray Serve: a replica runs one job at a time, and tells all that its task does as a stream of events.

It knows no store: checkpoints, results and previews go through the stream to the runner that holds the job, which is
why a replica may live on any machine, and may die.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...pipelines.stopping import Stopped, stoppable
from ..faults import DEFECTS, FAILED, describe
from ..settings import make_request
from ..shelf import Shelf
from ..tasks import TASKS
from ..work import Artifact, Write

if TYPE_CHECKING:
    from PIL import Image

BEAT = 0.25
"""Seconds between two signs of life, and between two looks at whether to stop."""
CHECKPOINT, PREVIEW = 10.0, 1.0
"""Least seconds between two of them."""
PREVIEW_SHARE = 0.05
"""Most of the time that previews may take."""


class Parcel(NamedTuple):
    """A job for a replica."""

    key: str
    """Under which the board says whether it is to stop."""
    task: str
    request: Mapping[str, Any]
    folder: str
    """What relative paths are relative to, where the replica has such a folder."""
    kept: tuple[str, ...] = ()
    checkpoint: bytes | None = None


class Event(NamedTuple):
    kind: str
    """beat, phase, progress, preview, checkpoint, keep, note; at the end done, stopped or failed."""
    data: tuple[Any, ...] = ()


class Board:
    """Which jobs are to stop; asked by replicas, as nobody can call one of them in particular."""

    def __init__(self) -> None:
        self.names: deque[str] = deque(maxlen=10_000)

    def stop(self, key: str) -> None:
        self.names.append(key)

    def wanted(self, key: str) -> bool:
        return key in self.names


@dataclass
class Streamed:
    """A task's `Work` that tells of everything and keeps nothing."""

    parcel: Parcel
    shelf: Shelf
    tell: Callable[[Event], None]
    asked: Callable[[], bool]
    home: Path
    """A folder for as long as the job is here."""
    device: str = "auto"
    stop: bool = False
    names: set[str] = field(default_factory=set)
    _looked: float = 0.0
    _told: float = 0.0
    _written: float = field(default_factory=time.monotonic)
    _preview_due: float = 0.0

    def cancelled(self) -> bool:
        now = time.monotonic()
        if not self.stop and now - self._looked > BEAT:
            self._looked, self.stop = now, self.asked()
        return self.stop

    def phase(self, name: str) -> None:
        self.tell(Event("phase", (name,)))

    def progress(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if step == steps or now - self._told >= BEAT:
            self._told = now
            self.tell(Event("progress", (step, steps)))

    def preview(self, step: int, render: Callable[[], Image.Image]) -> None:
        began = time.monotonic()
        if began < self._preview_due:
            return
        buffer = io.BytesIO()
        render().save(buffer, "PNG", compress_level=1)
        self.tell(Event("preview", (step, buffer.getvalue())))
        self._preview_due = began + max(PREVIEW, (time.monotonic() - began) / PREVIEW_SHARE)

    def about(self) -> Mapping[str, Any]:
        return {}

    def checkpoint(self, save: Callable[[Path], object], step: int, steps: int) -> None:
        if step != steps and not self.stop and time.monotonic() - self._written < CHECKPOINT:
            return
        file = self.home / "checkpoint"
        save(file)
        self.tell(Event("checkpoint", (file.read_bytes(), step, steps)))
        self._written = time.monotonic()

    def saved(self) -> Path | None:
        if self.parcel.checkpoint is None:
            return None
        file = self.home / "saved"
        file.write_bytes(self.parcel.checkpoint)
        return file

    def keep(self, artifact: Artifact, write: Write) -> None:
        buffer = io.BytesIO()
        write(buffer)
        self.names.add(artifact.name)
        self.tell(Event("keep", (artifact, buffer.getvalue())))

    def kept(self) -> Collection[str]:
        return {*self.parcel.kept, *self.names}

    def note(self, text: str) -> None:
        self.tell(Event("note", (text,)))


class Replica:
    """What Ray Serve holds several of."""

    def __init__(self, board: Any, threads: int) -> None:
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.board, self.shelf = board, Shelf()

    async def run(self, parcel: Parcel) -> AsyncIterator[Event]:
        """The job's events; the work itself is done in a thread, so that the replica still answers."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        thread = threading.Thread(target=self._work, args=(parcel, tell), daemon=True)
        thread.start()
        try:
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), BEAT)
                except TimeoutError:
                    event = Event("beat")
                yield event
                if event.kind in ("done", "stopped", "failed"):
                    return
        finally:
            while thread.is_alive():  # whoever leaves has said so on the board; the next job needs the device
                await asyncio.sleep(BEAT)

    def _work(self, parcel: Parcel, tell: Callable[[Event], None]) -> None:
        import ray

        def asked() -> bool:
            return bool(ray.get(self.board.wanted.remote(parcel.key)))

        with tempfile.TemporaryDirectory() as folder:
            work = Streamed(parcel, self.shelf, tell, asked, Path(folder))
            try:
                os.chdir(parcel.folder if Path(parcel.folder).is_dir() else folder)
                task = next(task for task in TASKS if task.request.task == parcel.task)
                with stoppable(work.cancelled):
                    outcome = task.job(make_request(task.request, parcel.request), work)
                tell(Event("done", (outcome,)))
            except Stopped:
                tell(Event("stopped"))
            except DEFECTS as error:
                self.shelf.clear()
                tell(Event("failed", described(error)))
            finally:
                os.chdir("/")


def described(error: Exception) -> tuple[int, str]:
    found = describe(error)
    return found or (FAILED, f"a defect of sfumato: {type(error).__name__}: {str(error)[:200]}")
