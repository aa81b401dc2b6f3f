"""A batch on a Ray cluster: one actor per device, each a worker. What a dead one had in hand goes to another."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..console import Console
from ..faults import FAILED, Failure
from .parcels import Answer, Asked, Counts, Fault, Group, Look
from .worker import Worker

STRIKES = 3
"""Deaths of actors over the same work after which it has failed."""
LOOK = 0.5
"""Seconds between two looks at whether to stop."""
KNOCK = 10.0
"""Seconds for a cluster to answer at its address."""
PATIENCE = 60.0
"""Seconds without any node on which an actor could live, after which the batch gives up."""


class Device(NamedTuple):
    """Where an actor lives: a GPU, or processors of a node where there is none."""

    node: str
    gpus: int
    cpus: int
    at: int = 0
    """Which of the node's devices."""


class Remote:
    """The actor: a worker that may be told nothing but its next group."""

    def __init__(self, folder: str, threads: int) -> None:
        if Path(folder).is_dir():  # relative paths of requests, where the folder is shared
            os.chdir(folder)
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.worker = Worker()

    def ready(self) -> None:
        """Answers once the actor lives."""

    def look(self, rows: Sequence[Asked], per_batch: int) -> list[Look | Fault]:
        return self.worker.look(rows, per_batch)

    def run(self, group: Group) -> tuple[list[Any], Counts]:
        return self.worker.run(group), self.worker.counts()


@contextmanager
def on_ray(address: str | None, cpus: int, console: Console) -> Iterator[tuple[RayEngine, Console]]:
    """For the length of the block, an engine and the console to be used meanwhile."""
    with connected(address, console) as own:
        engine = RayEngine(own.say, cpus)
        try:
            own.say(f"on Ray: {len(devices_there(cpus))} workers")
            yield engine, own
        finally:
            engine.close()


@contextmanager
def connected(address: str | None, console: Console) -> Iterator[Console]:
    """To the cluster, or to one of this machine alone. Refused in a sentence where there is no Ray or no cluster.

    Ray tells of dead workers on stdout, which is for data: stdout is stderr meanwhile, but for the console given back.
    """
    if not find_spec("ray"):
        raise Failure("ray: is not installed; pip install 'sfumato[batch]' brings it")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if address:
        answers(address)
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            if address:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise Failure(f"address: {address!r}: no Ray cluster answers there ({reason})") from error
        try:
            yield replace(console, out=out)
        finally:
            ray.shutdown()


def answers(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would go on asking for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto" or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK).close()
    except (OSError, OverflowError) as error:
        reason = f"{error.strerror or error}" if isinstance(error, OSError) else "no such port"
        raise Failure(f"address: {address!r}: no Ray cluster answers there ({reason})") from error


def devices_there(share: int = 0) -> list[Device]:
    """Where there are GPUs, processors stand back: their pictures differ in the last bits."""
    import ray

    gpus, others = list[Device](), list[Device]()
    for node in ray.nodes():
        if node["Alive"]:
            count, cpus = (int(node["Resources"].get(name, 0)) for name in ("GPU", "CPU"))
            gpus += [Device(node["NodeID"], 1, 0, at) for at in range(count)]
            own = min(share or cpus, cpus)
            others += [Device(node["NodeID"], 0, own, at) for at in range(cpus // own if own else 0)]
    return gpus or others


class Hand(NamedTuple):
    """What an actor has in hand; no group while it is being born."""

    device: Device
    group: Group | None = None
    deaths: int = 0
    """Of actors that had it before."""


@dataclass
class RayEngine:
    say: Callable[[str], None]
    cpus: int = 0
    """Processors of an actor, where there are no GPUs; 0 is all of its node's."""
    actors: dict[Device, Any] = field(default_factory=dict)
    hands: dict[Any, Hand] = field(default_factory=dict)
    """By what Ray will answer."""
    left: deque[Hand] = field(default_factory=deque)
    _counts: dict[str, Counts] = field(default_factory=dict)
    """Of every actor that lived, by its name."""
    _names: dict[Device, str] = field(default_factory=dict)
    _born: int = 0
    _alone: float = 0.0
    """Since when no device is there."""

    def staff(self) -> None:
        """An actor on every device that has none."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = devices_there(self.cpus)
        self._alone = 0.0 if here else self._alone or time.monotonic()
        if self._alone and time.monotonic() - self._alone > PATIENCE:
            raise Failure("the Ray cluster has no node with a GPU or a processor; `ray status` shows it")
        for device in here:
            if device in self.actors:
                continue
            place = NodeAffinitySchedulingStrategy(node_id=device.node, soft=False)
            kind: Any = ray.remote(Remote).options(
                num_cpus=device.cpus, num_gpus=device.gpus, scheduling_strategy=place
            )
            actor: Any = kind.remote(str(Path.cwd()), device.cpus)
            self.actors[device] = actor
            self.hands[actor.ready.remote()] = Hand(device)
            self._born += 1
            self._names[device] = f"{device.node[:8]}-{device.at} ({self._born})"

    def look(self, rows: Sequence[Asked], per_batch: int) -> list[Look | Fault]:
        """By one of the actors, which has then the first model open."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        strikes = 0
        while strikes < STRIKES:
            self.staff()
            device = next((device for device in self.actors if not self._busy(device)), None)
            if device is None:
                list(self._collect())
                continue
            try:
                found: list[Look | Fault] = ray.get(self.actors[device].look.remote(list(rows), per_batch))
                return found
            except RayTaskError as error:
                raise Failure(f"a worker can't look at the rows: {_reason(error)}") from error
            except RayError as error:
                self.bury(device, error)
                strikes += 1
        raise Failure(f"{STRIKES} actors died as they looked at the rows; is there memory for the model?")

    def run(
        self, groups: Sequence[Group], stopped: Callable[[], bool], within: Callable[[int], None]
    ) -> Iterator[Answer]:
        self.left = deque(Hand(NOBODY, group) for group in groups)
        while (self.left or any(hand.group for hand in self.hands.values())) and not stopped():
            self.staff()
            for device in self.actors:
                if self.left and not self._busy(device):
                    hand = self.left.popleft()._replace(device=device)
                    self.hands[self.actors[device].run.remote(hand.group)] = hand
            yield from self._collect()

    def _busy(self, device: Device) -> bool:
        return any(hand.device == device for hand in self.hands.values())

    def _collect(self) -> Iterator[Answer]:
        """What has come by now."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if not self.hands:
            time.sleep(LOOK)
            return
        ready, _ = ray.wait(list(self.hands), num_returns=1, timeout=LOOK)
        for answer in ready:
            device, group, deaths = self.hands.pop(answer)
            name = self._names[device]
            try:
                came = ray.get(answer)
            except RayTaskError as error:  # the actor lives; what it was given can't be done
                if group is None:
                    raise Failure(f"a worker can't be started: {_reason(error)}") from error
                why = f"a defect of sfumato: {_reason(error)}"
                yield Answer(group, [Fault(unit, FAILED, why) for unit in group.units], name)
                continue
            except RayError as error:
                self.bury(device, error)
                if group is not None and deaths + 1 >= STRIKES and len(group.units) == 1:
                    yield Answer(group, _lost(group, deaths + 1), name)
                elif group is not None:
                    self.left.extendleft(reversed(_again(group, deaths + 1)))
                continue
            if group is not None:
                results, self._counts[name] = came
                yield Answer(group, results, name)

    def bury(self, device: Device, error: Exception) -> None:
        import ray

        self.say(f"the actor {self._names[device]} is lost ({_reason(error)}); its work goes to another")
        with suppress(ValueError):
            ray.kill(self.actors.pop(device))

    def counts(self) -> Counts:
        return Counts(
            sum(counts.loads for counts in self._counts.values()),
            sum(counts.encodings for counts in self._counts.values()),
        )

    def close(self) -> None:
        import ray

        for actor in self.actors.values():
            with suppress(ValueError):
                ray.kill(actor)
        self.actors.clear()


def _reason(error: Exception) -> str:
    """What an error of Ray says last, which is what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]


NOBODY = Device("", 0, 0)


def _again(group: Group, deaths: int) -> list[Hand]:
    """Once as it was; should it take a second actor down, each of its units by itself."""
    if deaths < 2 or len(group.units) == 1:
        return [Hand(NOBODY, group, deaths)]
    share = group.cost // len(group.units)
    return [
        Hand(
            NOBODY, Group((unit,), tuple(row for row in group.asked if row.id == unit.row), share), deaths - 1
        )
        for unit in group.units
    ]


def _lost(group: Group, deaths: int) -> list[Fault]:
    why = f"{deaths} actors died over it, as they do when memory runs out; ask for a smaller size or larger nodes"
    return [Fault(unit, FAILED, why) for unit in group.units]
