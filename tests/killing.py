"""Children that run jobs and are killed: at a moment, or at the n-th call of a function, before, within or after it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from sfumato.app import output, shelf
from sfumato.app.jobs import artifacts, job_work, ledger, schema, store
from sfumato.app.jobs.home import Policy
from sfumato.app.jobs.runner import Runner
from sfumato.app.tasks import TASKS
from sfumato.pipelines.text_to_image import TextToImage

EAGER = Policy(checkpoint_seconds=0, preview_seconds=0, preview_share=1e9, progress_seconds=0, strikes=10**6)
"""Everything is written at each step, so that there is much to be killed in."""


class Spot(NamedTuple):
    """Where a child kills itself."""

    place: str
    """decode, write, rename, shelve or commit."""
    call: int
    when: str
    """before, within or after that call."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _spotted(spot: Spot, whole: Callable, within: Callable | None = None) -> Callable:
    """`whole`, which kills the process around its n-th call."""
    left = [spot.call]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] != 0:
            return whole(*args, **kwargs)
        if spot.when == "before":
            die()
        if spot.when == "within" and within is not None:
            within(*args, **kwargs)
        result = whole(*args, **kwargs)
        die()
        return result

    return call


def arm(spot: Spot) -> None:
    """In a child: put the trap into the function that is meant."""
    if spot.place == "decode":
        TextToImage.decode = _spotted(spot, TextToImage.decode)
    elif spot.place == "write":

        def half(path: Path, write: Callable) -> None:
            (path.parent / f".{path.name}.half.part").write_bytes(b"half of it")
            die()

        job_work.write_whole = _spotted(spot, output.write_whole, half)
    elif spot.place == "rename":
        os.replace = _spotted(spot, os.replace)
    elif spot.place == "shelve":
        ledger.shelve = _spotted(spot, artifacts.shelve)
    else:
        trap_commits(spot)


def trap_commits(spot: Spot) -> None:
    class Trapped:
        """A connection whose n-th COMMIT kills."""

        def __init__(self, db) -> None:
            self.db = db
            self.commit = _spotted(spot, db.execute)

        def execute(self, statement, *values):
            run = self.commit if statement == "COMMIT" else self.db.execute
            return run(statement, *values)

        def __getattr__(self, name):
            return vars(type(self.db))[name].__get__(self.db)

    store.connect = lambda file: Trapped(schema.connect(file))


def child(home: Path, *, spot: Spot | None = None, kept: shelf.Shelf | None = None, tasks=TASKS) -> int:
    """Fork a process that runs all waiting jobs; the process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)  # the threads of a pool do not survive a fork
        if spot is not None:
            arm(spot)
        Runner(store.Store(home), shelf=kept or shelf.Shelf(), tasks=tasks, policy=EAGER).run()
        code = 0
    finally:
        os._exit(code)


def end(pid: int, after: float | None = None) -> bool:
    """Wait for a child, killing it after so many seconds. Whether it was killed; any other failure is an error."""
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return False
