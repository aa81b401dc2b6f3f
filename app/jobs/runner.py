"""The runner: takes one job after the other on one device, and keeps the last opened model."""

from __future__ import annotations

import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...pipelines.stopping import Stopped, stoppable
from ..devices import devices_here
from ..faults import DEFECTS, Failure, describe, os_sentence
from ..settings import make_request
from ..shelf import Shelf
from ..tasks import TASKS, Task
from .artifacts import gc, usage
from .control import first
from .home import Policy, told_size
from .job_work import JobWork
from .ledger import LOST, Claim, Lost, claim, orphaned
from .locks import busy, device_lock
from .store import COMPLETED, FAILED, Store

if TYPE_CHECKING:
    from ..requests import Request

WAIT = 0.01
"""Seconds between two looks at whether something was submitted; a look takes microseconds."""
PATIENCE = 2.0
"""Seconds to wait for a device that someone is just looking after."""


def _never() -> bool:
    return False


def _silent(text: str) -> None:
    return None


@dataclass
class Runner:
    """One per device and process. A planner would stand in `run_job`, between the request and its task."""

    store: Store
    device: str = "cpu"
    others: tuple[str, ...] = ()
    """Devices of requests that are not for this runner."""
    tasks: Iterable[Task] = TASKS
    policy: Policy = field(default_factory=Policy)
    stopping: Callable[[], bool] = _never
    say: Callable[[str], None] = _silent
    shelf: Shelf = field(default_factory=Shelf)
    moves: bool = True
    """Go into the folder of each job. Not where other runners share the process, which has one such place."""
    name: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(4)}")

    def run(self, *, forever: bool = False) -> dict[str, int]:
        """Until nothing waits, or until it is to stop. Returns how many jobs ended in which state."""
        ended: dict[str, int] = {}
        with device_lock(self.store.home, self.device, patience=PATIENCE) as held:
            if not held:
                raise busy(self.device)
            for job in orphaned(self.store, self.device, self.policy.strikes):
                self.say(
                    f"job {job.id}: {job.error or 'was interrupted, and goes on from its last checkpoint'}"
                )
            gc(self.store)
            while not self.stopping():
                found = self._next(forever)
                if found is None:
                    break
                state = self.run_job(found)
                ended[state] = ended.get(state, 0) + 1
        return ended

    def _next(self, forever: bool) -> Claim | None:
        """The next job; None if there is none and it is not to wait, or if it is to stop."""
        version, told = -1, False
        while not self.stopping():
            now = self.store.version()
            if now != version:
                version = now
                full = self._full() if first(self.store) is not None else ""
                if full and not forever:
                    raise Failure(full)
                found = None if full else claim(self.store, self.name, self.device, self.others)
                if found is not None or not forever:
                    return found
                if full and not told:
                    self.say(full)
                    told = True
            time.sleep(WAIT)
        return None

    def _full(self) -> str:
        used, cap = usage(self.store), self.policy.cap
        if used < cap:
            return ""
        less = told_size(int(cap * 0.8)).replace(" ", "")
        return (
            f"the results take {told_size(used)}, the cap is {told_size(cap)}: delete the oldest with "
            f"`sfumato jobs gc --to {less}`, or raise SFUMATO_DISK_CAP"
        )

    def run_job(self, found: Claim) -> str:
        """The job to its end, or to where it was asked to stop. Returns its state."""
        work = JobWork(found, self.shelf, self.device.partition(":")[0], self.policy, self.stopping)
        try:
            state = self._end_of(found, work)
        except Lost:
            state = LOST
        job = self.store.get(found.id)
        self.say(f"job {found.id}: {job.state}{f', {job.error}' if job.error else ''}")
        return state

    def _end_of(self, found: Claim, work: JobWork) -> str:
        try:
            work.begin()
            task, request = self._asked(found)
            with _folder_of(found) if self.moves else nullcontext(), stoppable(work.cancelled):
                outcome = task.job(request, work)
            work.finish(outcome)
            return COMPLETED
        except Stopped:
            return self._stop(work)
        except DEFECTS as error:
            self.shelf.clear()
            found.fail(self._sentence(work, error))
            return FAILED

    def _stop(self, work: JobWork) -> str:
        if work.claim.wanted() == LOST:
            return LOST
        try:
            work.write_checkpoint()
        except OSError as error:  # the one before is still there
            work.note(f"no checkpoint could be written: {os_sentence(error)}")
        return work.claim.stopped()

    def _asked(self, found: Claim) -> tuple[Task, Request]:
        job = self.store.get(found.id)
        known = {task.request.task: task for task in self.tasks}
        if job.task not in known:
            raise Failure(f"there is no task {job.task!r} in this sfumato; it knows {', '.join(known)}")
        task = known[job.task]
        return task, make_request(task.request, self.store.request(found.id))

    def _sentence(self, work: JobWork, error: Exception) -> str:
        """What the user is told; a defect of ours keeps its traceback in a file."""
        described = describe(error)
        if described is not None:
            return described[1].replace("\n", "; ")
        file = work.report_defect("".join(traceback.format_exception(error)))
        return f"a defect of sfumato: {type(error).__name__}: {str(error)[:200]} (details: {file})"


@contextmanager
def _folder_of(found: Claim) -> Iterator[None]:
    """Relative paths of a request are relative to where it was submitted."""
    folder = found.store.folder(found.id)
    if not folder.is_dir():
        yield
        return
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def settle(device: str) -> tuple[str, tuple[str, ...]]:
    """The device that is meant, and what jobs ask for that is not for its runner."""
    import torch

    here = devices_here()
    if device == "auto":
        device = here[0]
    elif device == "cuda":
        device = "cuda:0"
    if device not in here:
        raise Failure(f"there is no {device} here; `sfumato jobs run --device NAME` takes {', '.join(here)}")
    kind = device.partition(":")[0]
    if kind == "cuda":
        torch.cuda.set_device(device)
    others = [name for name in here if name != device]
    if kind != here[0].partition(":")[0]:
        others += ["auto", *(["cuda"] if here[0].startswith("cuda") else [])]
    return device, tuple(others)
