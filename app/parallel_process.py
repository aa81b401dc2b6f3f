"""One of the processes that `--parallel` starts: `python -m sfumato.app.parallel_process FOLDER RANK`.

All make the same calls on the same numbers. The first one decodes, writes the files and talks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..pipelines.parallel.branches import spread
from ..pipelines.parallel.group import Group, Lost, joined
from ..pipelines.parallel.ulysses import Ulysses
from ..pipelines.stopping import Stopped
from .assembly import on_device
from .console import Console
from .faults import DEFECTS, FAILED, INTERRUPTED, describe, refuse
from .generation import Run, prepare, sample
from .interruption import earlier_checkpoint, read_checkpoint, strange
from .local import Choices, LocalWork, finish, taken_up
from .requests import GenerateRequest
from .sharing import Parallel, check_gpus

FOLLOWER = Console(quiet=True)


@dataclass
class SharedWork(LocalWork):
    """Work that all processes stop at the same call."""

    group: Group | None = None

    def cancelled(self) -> bool:
        assert self.group is not None
        return self.group.agreed(self.stopped)()


def main(home: Path, rank: int) -> int:
    job = json.loads((home / "job.json").read_text())
    if rank:  # the first is asked to stop, and tells the others
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    try:
        return take_part(home, rank, job)
    except KeyboardInterrupt:
        return INTERRUPTED
    except DEFECTS as error:  # the border of this process: what happened is handed to the one that watches
        described = describe(error)
        if described is None:
            traceback.print_exc()
            described = FAILED, f"parallel: process {rank + 1}: {type(error).__name__}: {str(error)[:300]}"
        code, sentence = described
        lost = isinstance(error, Lost)
        code = FAILED if lost else code
        told = {"code": code, "sentence": sentence, "lost": lost}
        file = home / f"{rank}.json"
        file.with_suffix(".part").write_text(json.dumps(told))
        file.with_suffix(".part").rename(file)
        if lost:  # threads that wait for the other process would keep this one
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code


def take_part(home: Path, rank: int, job: Mapping[str, Any]) -> int:
    """Join the others and make the images with them."""
    parallel = Parallel(**job["parallel"])
    console, choices = Console(**job["console"]), Choices(**job["choices"])
    if rank == 0:
        console.listen()
    else:
        console, choices = FOLLOWER, replace(choices, preview_every=0)
    done = 0
    if job["resume"] is None:
        request = GenerateRequest.model_validate(job["request"])
        work = LocalWork(console, choices, tuple(Path(path) for path in job["paths"]))
    else:
        work, request, done = taken_up(job["resume"], console, choices)
    device = on_device(request).device
    settle_device(device, rank, parallel)
    with joined(rank, parallel.shape, home / "meeting", device=device, timeout=parallel.timeout) as group:
        shared = SharedWork(console, work.choices, work.paths, earlier=work.earlier, group=group)
        run = prepare(request, shared, suffix=work.paths[0].suffix.lower(), parallel=parallel)
        if job["resume"] is not None:
            why = strange(run, read_checkpoint(job["resume"])[1])
            if why is not None:
                raise refuse("resume", job["resume"], why)
        shared.done = [run.name(index) for index in range(done)]
        run = divided(run, group, parallel)
        return finish(run, shared) if group.first else follow(run, shared)


def settle_device(device: str, rank: int, parallel: Parallel) -> None:
    """This process's own GPU, or its share of the processor's cores."""
    size = parallel.shape.size
    if device.startswith("cuda"):
        check_gpus(parallel)
        torch.cuda.set_device(rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))


def divided(run: Run, group: Group, parallel: Parallel) -> Run:
    """The run with its guidance and its tokens shared out."""
    pipe = run.pipe
    if parallel.cfg > 1:
        pipe = replace(pipe, model=spread(run.model, group.branches))
    if parallel.ulysses > 1:
        pipe = replace(pipe, patches=(*pipe.patches, Ulysses(group.sequence)))
    return replace(run, pipe=pipe, together=str(parallel))


def follow(run: Run, work: LocalWork) -> int:
    """Sample what the first process samples, and write nothing."""
    first, earlier = 0, earlier_checkpoint(run, work)
    try:
        while first < run.request.count:
            count = run.alike(first)
            names = [run.name(index) for index in range(first, first + count)]
            if not set(names) <= set(work.kept()):
                sample(run, first, work, earlier)
            first += count
    except Stopped:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
