"""`sfumato jobs run --engine ray`: the queue of this machine, run by replicas of Ray Serve on a cluster.

Each replica has a runner here, which claims a job, sends it, and writes into the store what the replica tells. So the
store stays on one local disk and all that `docs/jobs.md` says of it holds, whichever machine dies.
"""

from __future__ import annotations

import io
import logging
import platform
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...pipelines.errors import BadInput
from ...pipelines.stopping import Stopped
from ..console import Console
from ..faults import BAD_INPUT, DEFECTS, DONE, FAILED, INTERRUPTED, Failure
from ..interruption import asked_to_stop
from ..jobs.home import Policy, policy
from ..jobs.job_work import JobWork
from ..jobs.locks import busy, device_lock
from ..jobs.runner import Runner
from ..jobs.store import Store
from ..requests import Request
from ..tasks import TASKS, Task
from ..work import Outcome
from .manifest import digest
from .ray_engine import connected, devices_there
from .ray_replica import Board, Event, Parcel, Replica

STRIKES = 3
"""Deaths of replicas in one job without any progress after which it has failed."""


class Cluster(NamedTuple):
    address: str | None = None
    replicas: int = 0
    """0 is one per device."""


def run_on_ray(cluster: Cluster, home: Path, console: Console, *, forever: bool) -> int:
    """Until nothing waits, or until it is to stop; the exit code."""
    with device_lock(home, "ray") as held:
        if not held:
            raise busy("ray")
        return _run(cluster, home, console, forever)


def _run(cluster: Cluster, home: Path, console: Console, forever: bool) -> int:
    name = f"sfumato-{digest(f'{platform.node()} {home}'.encode())[:8]}"
    with connected(cluster.address, console) as own:
        from ray import serve

        with asked_to_stop(own.say) as stopping:
            handle, board, count = deployed(cluster, name)
            own.say(f"on Ray: {count} replicas")
            remote = Sender(handle, board)
            runners = [_Apart(remote, home, at, stopping, own.say) for at in range(count)]
            ended = _all(runners, forever)
            told = ", ".join(f"{n} {state}" for state, n in ended.items()) or "nothing was waiting"
            own.data({"engine": "ray", "replicas": count, "ended": ended}, told)
            stopped = stopping()
        serve.delete(name)
    if stopped:
        return INTERRUPTED
    return FAILED if ended.get("failed") else DONE


def deployed(cluster: Cluster, name: str) -> tuple[Any, Any, int]:
    """The replicas' handle, the board, and how many replicas there are."""
    import ray
    from ray import serve

    devices = devices_there()
    if not devices:
        raise Failure("the Ray cluster has no node with a GPU or a processor; `ray status` shows it")
    gpus, cpus = bool(devices[0].gpus), min(device.cpus for device in devices)
    count = cluster.replicas or len(devices)
    board: Any = ray.remote(Board).options(num_cpus=0).remote()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    deployment: Any = serve.deployment(
        Replica,
        name="Replica",
        num_replicas=count,
        max_ongoing_requests=1,
        ray_actor_options={"num_cpus": 0 if gpus else cpus, "num_gpus": int(gpus)},
        graceful_shutdown_timeout_s=2,
    )
    handle = serve.run(deployment.bind(board, 0 if gpus else cpus), name=name, route_prefix=None)
    return handle.options(stream=True, method_name="run"), board, count


@dataclass(frozen=True)
class Sender:
    """Has jobs run by replicas."""

    handle: Any
    board: Any

    def tasks(self) -> Sequence[Task]:
        return tuple(Task(task.request, self.job) for task in TASKS)

    def job(self, request: Request, work: Any) -> Outcome:
        """A task's function. What a dead replica had in hand goes to another, from the last checkpoint."""
        from ray.exceptions import RayError

        assert isinstance(work, JobWork)
        strikes = 0
        while True:
            parcel = self.parcel(request, work)
            run = Dispatch(self, parcel, work)
            try:
                return run.outcome()
            except RayError as error:
                strikes = 1 if run.advanced else strikes + 1
                if strikes >= STRIKES:
                    why = f"the replica died {strikes} times without getting any further, as it does when memory"
                    raise Failure(f"{why} runs out; ask for a smaller size or batch") from error
                work.note("its replica died; another goes on from the last checkpoint")

    def parcel(self, request: Request, work: JobWork) -> Parcel:
        file, claim = work.saved(), work.claim
        return Parcel(
            secrets.token_hex(8),
            request.task,
            request.model_dump(mode="json"),
            str(claim.store.folder(claim.id)),
            tuple(work.kept()),
            None if file is None else file.read_bytes(),
        )


@dataclass
class Dispatch:
    """One try of a job on one replica."""

    sender: Sender
    parcel: Parcel
    work: JobWork
    advanced: bool = False
    stopping: bool = False
    ended: bool = False

    def outcome(self) -> Outcome:
        try:
            for event in self.sender.handle.remote(self.parcel):
                found = self._take(event)
                if found is not None:
                    return found
                if not self.stopping and self.work.cancelled():
                    self._stop()
        finally:
            if not self.ended:
                self._stop()
        raise Failure("the replica ended without a result; try the job again")

    def _stop(self) -> None:
        self.stopping = True
        self.sender.board.stop.remote(self.parcel.key)

    def _take(self, event: Event) -> Outcome | None:
        kind, data = event
        self.ended = kind in ("done", "stopped", "failed")
        if kind == "done":
            outcome: Outcome = data[0]
            return outcome
        if kind == "stopped":
            raise Stopped("stopped on request")
        if kind == "failed":
            code, sentence = data
            raise BadInput("request", sentence) if code == BAD_INPUT else Failure(sentence)
        try:
            self._apply(kind, data)
        except (
            Stopped
        ):  # phases and results ask whether to stop; the replica's last checkpoint is still to come
            self._stop()
        return None

    def _apply(self, kind: str, data: tuple[Any, ...]) -> None:
        work = self.work
        match kind:
            case "phase":
                work.phase(data[0])
            case "progress":
                work.progress(*data)
            case "preview":
                work.preview(data[0], lambda: _picture(data[1]))
            case "checkpoint":
                self.advanced = True
                work.checkpoint(lambda path: path.write_bytes(data[0]), data[1], data[2])
                work.write_checkpoint()
            case "keep":
                self.advanced = True
                work.keep(data[0], lambda file: file.write(data[1]))
            case "note":
                work.note(data[0])


def _picture(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data))


class _Apart(threading.Thread):
    """A runner in a thread of its own, with a store of its own."""

    def __init__(
        self, sender: Sender, home: Path, at: int, stopping: Callable[[], bool], say: Callable[[str], None]
    ) -> None:
        super().__init__(daemon=True)
        self.sender, self.home, self.at, self.stopping, self.say = sender, home, at, stopping, say
        self.policy: Policy = policy()
        self.forever = False
        self.ended: dict[str, int] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            runner = Runner(
                Store(self.home),
                f"ray:{self.at}",
                tasks=self.sender.tasks(),
                policy=self.policy,
                stopping=self.stopping,
                say=self.say,
                moves=False,
            )
            self.ended = runner.run(forever=self.forever)
        except DEFECTS as error:
            self.error = error


def _all(runners: Sequence[_Apart], forever: bool) -> dict[str, int]:
    """Run them to their ends; how many jobs ended in which state."""
    for runner in runners:
        runner.forever = forever
        runner.start()
    ended: dict[str, int] = {}
    for runner in runners:
        while runner.is_alive():
            runner.join(0.2)  # so that signals reach this thread
        if runner.error is not None:
            raise runner.error
        for state, count in runner.ended.items():
            ended[state] = ended.get(state, 0) + count
    return ended
