"""Processes that make one picture together: which of them this is, and with whom it shares what.

Every process runs the same loop on the same numbers; only the network's work is divided. Processes stand in a grid:
`branches` rows share the conditions of a step (`branches.py`), `sequence` columns share the tokens of a condition
(`ulysses.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput, SfumatoError

MOST = 64
"""Processes on one machine."""


class Lost(SfumatoError):
    """Another process of the group ended or stood still."""


@dataclass(frozen=True)
class Shape:
    """The grid of processes."""

    branches: int = 1
    """Processes over which the conditions of a step are spread (CFG-parallel), 1..64; 1 is off."""
    sequence: int = 1
    """Processes over which the tokens of a condition are spread (sequence-parallel), 1..64; 1 is off."""

    def __post_init__(self) -> None:
        for name, value in (("branches", self.branches), ("sequence", self.sequence)):
            if not 1 <= value <= MOST:
                raise BadInput("parallel", f"parallel: {name} = {value} must be in 1..{MOST}")

    @property
    def size(self) -> int:
        return self.branches * self.sequence


@dataclass(frozen=True)
class Team:
    """Processes that share one kind of work, and this one's place among them."""

    rank: int
    size: int
    handle: Any
    """torch.distributed's process group."""
    patience: timedelta | None = None
    """How long this process waits for gloo, which may itself forget its own limit; nccl has a watchdog."""

    def gather(self, own: Tensor) -> list[Tensor]:
        """The tensor of every process, in the order of their ranks; all must have one shape and dtype."""
        import torch.distributed as dist

        own = own.contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        with told():
            ended(dist.all_gather(found, own, group=self.handle, async_op=True), self.patience)
        return found

    def exchange(self, parts: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Part i goes to process i; what comes back is what each sent here, whose shapes are known."""
        import torch.distributed as dist

        sent = torch.cat([part.reshape(-1) for part in parts])
        sizes = [torch.Size(shape).numel() for shape in shapes]
        taken = sent.new_empty(sum(sizes))
        counts = [part.numel() for part in parts]
        with told():
            work = dist.all_to_all_single(taken, sent, sizes, counts, group=self.handle, async_op=True)
            ended(work, self.patience)
        return [part.view(shape) for part, shape in zip(taken.split(sizes), shapes, strict=True)]

    def shift(self, own: Tensor, shape: tuple[int, ...]) -> Tensor:
        """To the next process in the ring; what the one before sent, whose shape is known."""
        import torch.distributed as dist

        own, taken = own.contiguous(), own.new_empty(shape)
        there, here = (dist.get_global_rank(self.handle, (self.rank + way) % self.size) for way in (1, -1))
        sent = dist.P2POp(dist.isend, own, there, self.handle)
        came = dist.P2POp(dist.irecv, taken, here, self.handle)
        with told():
            for work in dist.batch_isend_irecv([sent, came]):
                ended(work, self.patience)
        return taken


@dataclass(frozen=True)
class Group:
    """This process among all."""

    rank: int
    shape: Shape
    branches: Team
    sequence: Team

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def agreed(self, cancelled: Callable[[], bool]) -> Callable[[], bool]:
        """Whether the first process was asked to stop; all learn it at the same call, so that none waits."""
        import torch.distributed as dist

        def asked() -> bool:
            flag = torch.tensor([self.first and cancelled()], dtype=torch.uint8)
            with told():
                ended(dist.broadcast(flag, 0, async_op=True), self.branches.patience)
            return bool(flag)

        return asked


def ended(work: Any, patience: timedelta | None) -> None:
    """Wait for an exchange."""
    if patience is None:
        work.wait()
    else:
        work.wait(patience)


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong between processes, as one error."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError and gloo's own
        first = (str(error).splitlines() or ["no reason given"])[0]
        raise Lost(f"parallel: another process of the group ended or stood still ({first[:200]})") from error


@contextmanager
def joined(
    rank: int, shape: Shape, meeting: Path, *, device: str = "cpu", timeout: float = 600.0
) -> Iterator[Group]:
    """Meet the other processes through the file `meeting`, which must be new and on a disk that all share.

    CPU tensors go through gloo, those of a GPU through nccl. `timeout` is in seconds, for any one exchange.
    After `Lost` the process must end by `os._exit`: gloo's threads may still wait, and are not waited for here.
    """
    import torch.distributed as dist

    if not dist.is_available():
        raise BadInput("parallel", "parallel: this build of torch has no torch.distributed; install another")
    if not 0 <= rank < shape.size:
        raise BadInput("parallel", f"parallel: rank {rank} is not in 0..{shape.size - 1}")
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    with told():
        dist.init_process_group(
            backend,
            store=dist.FileStore(str(meeting), shape.size),
            rank=rank,
            world_size=shape.size,
            timeout=timedelta(seconds=timeout),
        )
    # gloo's own limit comes first, as its sentence says more
    patience = None if device.startswith("cuda") else timedelta(seconds=timeout + 2)
    lost = False
    try:
        yield _placed(rank, shape, patience)
    except Lost:
        lost = True
        raise
    finally:
        if not lost:
            dist.destroy_process_group()


def _placed(rank: int, shape: Shape, patience: timedelta | None) -> Group:
    import torch.distributed as dist

    ranks = torch.arange(shape.size).view(shape.branches, shape.sequence)
    row, column = divmod(rank, shape.sequence)
    with told():  # every process makes every group, in one order
        rows = [dist.new_group(line.tolist()) for line in ranks]
        columns = [dist.new_group(line.tolist()) for line in ranks.T]
    return Group(
        rank,
        shape,
        Team(row, shape.branches, columns[column], patience),
        Team(column, shape.sequence, rows[row], patience),
    )
