"""Stopping between network calls where no loop of ours runs: while weights load, prompts are encoded, hashes are taken.

    with stoppable(cancelled):
        model = open_model(folder)  # raises Stopped soon after cancelled() is true

The question is ambient, as families and text encoders number dozens and none of them should have to pass it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading a header must not load torch
    from torch import nn


class Stopped(Exception):
    """The work was stopped on request, between two network calls."""


def _never() -> bool:
    return False


_CANCELLED: ContextVar[Callable[[], bool]] = ContextVar("_CANCELLED", default=_never)


@contextmanager
def stoppable(cancelled: Callable[[], bool]) -> Iterator[None]:
    """Inside this block `poll` asks `cancelled`."""
    token = _CANCELLED.set(cancelled)
    try:
        yield
    finally:
        _CANCELLED.reset(token)


def poll() -> None:
    """Called before anything that takes long; raises Stopped if the work is to stop."""
    if _CANCELLED.get()():
        raise Stopped("stopped on request")


def polled(net: nn.Module) -> nn.Module:
    """The network, which polls before each call. For networks that others call, as a text encoder within a pipeline."""
    net.register_forward_pre_hook(_before)
    return net


def _before(net: nn.Module, inputs: object) -> None:
    poll()
