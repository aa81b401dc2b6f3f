"""The one sampling loop of every task: progress, previews, cancel, checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .errors import NotFinite, SfumatoError
from .moment import Step, stepping
from .noise import SeededNoise
from .protocols import Cond, Denoiser, Path, Pred, Predict, Sampler, State
from .stopping import Stopped, stoppable


@dataclass(frozen=True)
class Event:
    """What a listener learns after each whole step."""

    step: int
    """Whole steps done, 1..steps."""
    steps: int
    t: float
    """The time reached."""
    seconds: float
    """Since this run began (a resumed run counts from its resumption)."""
    eta: float
    """Seconds left, from the mean of the steps so far."""
    x: Tensor
    x0: Tensor
    """The clean estimate of the step's last evaluation."""
    render: Callable[[Tensor], Tensor] | None = None

    def preview(self) -> Tensor:
        """x0 as a small picture, uint8 [B,3,...]; computed only when asked for."""
        if self.render is None:
            raise ValueError("no preview: give Control(render=...), for instance a preview.Projection")
        return self.render(self.x0)


@dataclass(frozen=True)
class Control:
    """How a run is watched and steered. Nothing here changes the result."""

    on_step: Callable[[Event], None] | None = None
    render: Callable[[Tensor], Tensor] | None = None
    """Clean latents to a uint8 picture, for Event.preview()."""
    cancelled: Callable[[], bool] | None = None
    """Polled before every network call; true stops the run with `Cancelled`."""
    on_checkpoint: Callable[[Checkpoint], None] | None = None
    checkpoint_every: int = 1
    """Whole steps between checkpoints, 1 and up."""
    fingerprint: str = ""
    """What the run is (request, versions, weights), saved in its checkpoints and compared on resume."""
    resume: Checkpoint | None = None

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be 1 or more, got {self.checkpoint_every}")


class Cancelled(Exception):
    """The run was cancelled; `checkpoint` is the last whole step, from which it can go on."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(f"cancelled after step {checkpoint.step} of {len(checkpoint.ts) - 1}")
        self.checkpoint = checkpoint


class Mismatch(SfumatoError):
    """A checkpoint that belongs to another run."""


class Polled:
    """A denoiser that asks whether to stop before each network call."""

    def __init__(self, denoise: Denoiser, cancelled: Callable[[], bool]) -> None:
        self.denoise = denoise
        self.cancelled = cancelled
        self.path: Path = denoise.path
        self.net: nn.Module = denoise.net

    def __call__(self, x: Tensor, t: float, *conds: Cond) -> list[Pred]:
        if self.cancelled():
            raise Stopped("stopped on request")
        return self.denoise(x, t, *conds)


@torch.no_grad()
def run(
    sampler: Sampler,
    predict: Predict,
    x: Tensor,
    ts: Sequence[float],
    path: Path,
    *,
    noise: SeededNoise | None = None,
    control: Control | None = None,
) -> Tensor:
    """Take x from ts[0] to ts[-1]. One device sync per step looks for NaN and infinity."""
    control = control or Control()
    ts = tuple(float(t) for t in ts)
    _check_times(ts)
    state, first = State(x), 0
    if control.resume is not None:
        state, first = _resumed(control.resume, control.fingerprint, ts, x, noise)
    seen: list[Pred] = []

    def watched(y: Tensor, t: float) -> Pred:
        if control.cancelled is not None and control.cancelled():
            raise Stopped("stopped on request")
        seen[:] = [predict(y, t)]
        return seen[0]

    def draw() -> Tensor:
        if noise is None:
            raise ValueError("this sampler draws noise: pass noise=SeededNoise(...)")
        return noise().to(x)

    began, this = time.perf_counter(), object()
    for i in range(first, len(ts) - 1):
        before = None if noise is None else noise.states()
        try:
            with stepping(Step(i, len(ts) - 1, this)), _asking(control):
                after = sampler(watched, state, ts[i], ts[i + 1], path, draw)
        except Stopped:
            if control.cancelled is None:
                raise
            raise Cancelled(Checkpoint(state, i, ts, before, control.fingerprint)) from None
        _check_finite(after.x, i, ts)
        state, done = after, i + 1
        if control.on_checkpoint is not None and (
            done % control.checkpoint_every == 0 or done == len(ts) - 1
        ):
            states = None if noise is None else noise.states()
            control.on_checkpoint(Checkpoint(state, done, ts, states, control.fingerprint))
        if control.on_step is not None:
            seconds = time.perf_counter() - began
            eta = seconds / (done - first) * (len(ts) - 1 - done)
            x0 = seen[0].x0 if seen else state.x
            control.on_step(Event(done, len(ts) - 1, ts[done], seconds, eta, state.x, x0, control.render))
    return state.x


def _asking(control: Control) -> AbstractContextManager[None]:
    """Within a step, whoever polls asks what the run asks."""
    return nullcontext() if control.cancelled is None else stoppable(control.cancelled)


def _resumed(
    saved: Checkpoint, fingerprint: str, ts: tuple[float, ...], x: Tensor, noise: SeededNoise | None
) -> tuple[State, int]:
    if saved.fingerprint != fingerprint:
        raise Mismatch(f"the checkpoint belongs to {saved.fingerprint!r}, this run is {fingerprint!r}")
    if saved.ts != ts:
        raise Mismatch(f"the checkpoint's times differ from this run's: {saved.ts} and {ts}")
    if saved.state.x.shape != x.shape:
        raise Mismatch(f"the checkpoint holds {tuple(saved.state.x.shape)}, this run {tuple(x.shape)}")
    if saved.noise is not None and noise is not None:
        noise.restore(saved.noise)
    elif saved.noise is not None:
        raise Mismatch("the checkpoint holds noise states, but this run has no noise source")
    return saved.state_on(x.device), saved.step


def _check_times(ts: tuple[float, ...]) -> None:
    falling = all(a > b for a, b in pairwise(ts))
    if len(ts) < 2 or not falling or not all(math.isfinite(t) for t in ts):
        raise ValueError(f"ts must be two or more finite falling times, got {list(ts)}")


def _check_finite(x: Tensor, i: int, ts: tuple[float, ...]) -> None:
    if bool(torch.isfinite(x).all()):
        return
    nans, infs = int(torch.isnan(x).sum()), int(torch.isinf(x).sum())
    raise NotFinite(
        f"step {i + 1} of {len(ts) - 1} (t {ts[i]:.6g} to {ts[i + 1]:.6g}) gave {nans} NaN and {infs} infinite "
        f"values of {x.numel()}: lower the guidance scale, or run the network in bfloat16 or float32"
    )
