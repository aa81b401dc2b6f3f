"""`--parallel`: one process per device makes each picture together; this one starts them, watches, and ends them all.

What a process is to do lies as `job.json` in a folder of its own for the run, where the processes meet and leave what
became of them. If one fails, the others are ended, and one sentence is said.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from .console import Console, complain
from .faults import FAILED, INTERRUPTED
from .jobs.supervisor import end_with_parent
from .local import Choices
from .output import check_output, image_paths
from .requests import GenerateRequest, settled
from .sharing import Parallel, check_asked

GRACE = 5.0
"""Seconds that the others have to end by themselves, once one has failed."""


def make_together(
    request: GenerateRequest | None,
    resume: str | None,
    console: Console,
    choices: Choices,
    parallel: Parallel,
) -> int:
    """Make and save all images of a request, or go on with an interrupted run."""
    paths: list[Path] = []
    if request is not None:
        check_asked(parallel, request)
        check_output(choices.output, make=True)
        request = settled(request)  # all processes must draw the same noise
        paths = image_paths(choices.output, request.count)
    job = {
        "request": None if request is None else request.model_dump(mode="json"),
        "resume": resume,
        "paths": [str(path) for path in paths],
        "choices": asdict(choices),
        "console": asdict(console),
        "parallel": asdict(parallel),
    }
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        home = Path(folder)
        (home / "job.json").write_text(json.dumps(job))
        return watch(home, start(home, parallel.shape.size), console)


def start(home: Path, size: int) -> list[subprocess.Popen[bytes]]:
    """The processes. The first has this one's stdout and stderr, the others write to files."""
    started = []
    for rank in range(size):
        command = [sys.executable, "-m", "sfumato.app.parallel_process", str(home), str(rank)]
        with (home / f"{rank}.log").open("wb") as log:
            started.append(
                subprocess.Popen(  # in groups of their own, so that Ctrl+C reaches the first alone, from here
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=None if rank == 0 else log,
                    stderr=None if rank == 0 else log,
                    preexec_fn=end_with_parent if sys.platform == "linux" else None,
                    process_group=0,
                )
            )
    return started


def watch(home: Path, started: Sequence[subprocess.Popen[bytes]], console: Console) -> int:
    """Until all have ended, which all do once one fails. Gives the exit code."""
    failed: float | None = None
    ended: list[int] = []
    try:
        with handed_on(started):
            while any(child.poll() is None for child in started):
                for rank, child in enumerate(started):
                    if rank not in ended and child.poll() is not None:
                        ended.append(rank)
                        if child.returncode not in (0, INTERRUPTED) and failed is None:
                            failed = time.monotonic()
                if failed is not None and time.monotonic() > failed + GRACE:
                    break
                time.sleep(0.02)
    finally:
        for child in started:
            if child.poll() is None:
                child.kill()
                child.wait()
    if failed is None:
        ended = list(range(len(started)))  # some may have ended since the last look
    # those that were killed here did nothing wrong
    bad = [rank for rank in ended if started[rank].returncode not in (0, INTERRUPTED)]
    if not bad:
        return started[0].returncode
    code, sentence = verdict(home, started, bad)
    complain(sentence)
    if console.verbose:
        for rank in bad:
            console.detail(f"process {rank + 1}:\n{(home / f'{rank}.log').read_text(errors='replace')}")
    return code


def verdict(home: Path, started: Sequence[subprocess.Popen[bytes]], bad: Sequence[int]) -> tuple[int, str]:
    """What went wrong first: who only lost another process says less than the one that was lost."""
    told: dict[int, dict[str, Any]] = {
        rank: json.loads(file.read_text()) for rank in bad if (file := home / f"{rank}.json").is_file()
    }
    for rank in bad:
        if rank in told and not told[rank]["lost"]:
            return told[rank]["code"], told[rank]["sentence"]
    silent = next((rank for rank in bad if rank not in told), None)
    if silent is None:
        return told[bad[0]]["code"], told[bad[0]]["sentence"]
    code, of = started[silent].returncode, f"process {silent + 1} of {len(started)}"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return FAILED, f"parallel: {of} {how}, so all were ended; is there memory enough? --verbose says more"


@contextmanager
def handed_on(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ctrl+C and SIGTERM go to the first process, by which all stop at one step; the third ends all at once."""
    asked = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked >= 3:
            raise KeyboardInterrupt
        started[0].send_signal(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, on_signal) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
