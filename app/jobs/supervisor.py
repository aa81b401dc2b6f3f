"""Starts the runner in a process of its own, and again if a job takes it down."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ..console import Console
from ..faults import FAILED
from .ledger import recover
from .store import Store

DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux."""


def supervise(arguments: Sequence[str], home: Path, console: Console, *, strikes: int) -> int:
    """`sfumato jobs run --alone` with these arguments, until it ends by itself."""
    command = [sys.executable, "-m", "sfumato.app", "jobs", "run", "--alone", *arguments]
    while True:
        child = subprocess.Popen(  # in a group of its own, so that Ctrl+C reaches it once, from here
            command, preexec_fn=end_with_parent if sys.platform == "linux" else None, process_group=0
        )

        def hand_on(number: int, frame: FrameType | None, child: subprocess.Popen[bytes] = child) -> None:
            child.send_signal(number)

        before = [signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            code = child.wait()
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)
        if code >= 0:
            return code
        store = Store(home)
        fallen = recover(store, strikes)
        store.close()
        console.say(f"the runner died ({signal.Signals(-code).name})")
        for job in fallen:
            console.say(f"job {job.id}: {job.state}{f', {job.error}' if job.error else ''}")
        if not fallen:  # no job did it, so it would die again
            return FAILED


def end_with_parent() -> None:
    """In the child: should the supervisor be killed, the runner writes a checkpoint and ends."""
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
