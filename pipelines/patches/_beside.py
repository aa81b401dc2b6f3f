"""A control network computed beside the encoder of a UNet, its answer joined where the UNet first adds it.

A UNet takes what is added to its skip connections as a list, and goes through it after its last encoder block; what is
added in the middle, it takes as a tensor, and needs it after that. So the list waits when someone goes through it, and
fills the tensor then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, NamedTuple

import torch
from torch import Tensor

DOWN, MID = "down_block_additional_residuals", "mid_block_additional_residual"


class Samples(NamedTuple):
    """What a control network says."""

    down: list[Tensor]
    """For each skip connection."""
    mid: Tensor


Compute = Callable[[], Samples]
Wait = Callable[[], Samples]
Begin = Callable[[Compute], Wait]


class Coming:
    """Samples on their way, as the list that a UNet goes through."""

    def __init__(self, wait: Wait, like: Tensor) -> None:
        self._wait = wait
        self.mid = like.new_empty(0)
        """Nothing before the list was gone through."""

    def __iter__(self) -> Iterator[Tensor]:
        down, mid = self._wait()
        self.mid.set_(mid)
        return iter(down)


def joined(wait: Wait, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments for the UNet: what others add, and what is on its way."""
    before, middle = given.get(DOWN), given.get(MID)

    def both() -> Samples:
        down, mid = wait()
        if before is None:
            return Samples(down, mid)
        first = list(before)  # which may be on its way too, and then fills `middle`
        return Samples([a + b for a, b in zip(first, down, strict=True)], middle + mid)

    coming = Coming(both, given["sample"])
    return {DOWN: coming, MID: coming.mid}


@contextmanager
def beginning(device: torch.device, *, beside: bool) -> Iterator[Begin]:
    """How work is begun: by a thread with half of the cores, on CUDA by a stream of its own, or here and now."""
    if not beside:
        yield _here
    elif device.type == "cuda":
        yield _on_stream(device)
    else:
        with ThreadPoolExecutor(1, "control-network") as pool, _threads() as whole:
            yield _by_thread(pool, whole)


@contextmanager
def _threads() -> Iterator[int]:
    """How many torch uses, and uses again in the end."""
    whole = torch.get_num_threads()
    try:
        yield whole
    finally:
        torch.set_num_threads(whole)


def _here(compute: Compute) -> Wait:
    found = compute()
    return lambda: found


def _by_thread(pool: ThreadPoolExecutor, whole: int) -> Begin:
    def begin(compute: Compute) -> Wait:
        held = pool.submit(copy_context().run, _quietly, compute, max(1, whole // 2))
        torch.set_num_threads(max(1, whole - whole // 2))

        def wait() -> Samples:
            try:
                return held.result()
            finally:
                torch.set_num_threads(whole)

        return wait

    return begin


def _quietly(compute: Compute, threads: int) -> Samples:
    torch.set_num_threads(threads)
    with torch.no_grad():  # a thread begins with gradients on
        return compute()


def _on_stream(device: torch.device) -> Begin:
    side = torch.cuda.Stream(device)

    def begin(compute: Compute) -> Wait:
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            found = compute()

        def wait() -> Samples:
            main = torch.cuda.current_stream(device)
            main.wait_stream(side)
            for sample in (*found.down, found.mid):
                sample.record_stream(main)
            return found

        return wait

    return begin
