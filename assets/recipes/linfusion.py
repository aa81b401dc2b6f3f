"""Distil a network whose self-attention is linear from the one that it was made of: LinFusion (arXiv:2409.02097).

Section 3.4: only the self-attention layers learn, from the denoising loss against the teacher's own prediction (eq. 11)
and the output of each attention layer (eq. 12). The inputs are those of the teacher's own trajectories, at all of their
steps, so no training pictures are needed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...pipelines.converts._linear import mount, self_attentions
from ...pipelines.noise import SeededNoise
from ...pipelines.paths import begin
from ...pipelines.protocols import Cond, Model, Pred, Predict, State
from ...pipelines.rehearsal import rehearse, weightless
from ...pipelines.samplers.ddim import Ddim

GAPS = 1.25
"""What the allocator holds for all that is kept for the way back, by what that takes; measured on a processor."""


@dataclass(frozen=True)
class Distilled:
    """How the linear layers learn."""

    minutes: float = 5.0
    """Of learning, above 0."""
    batch: int = 8
    """Pictures of a trajectory, 1 and up."""
    rate: float = 5e-4
    """Learning rate, above 0."""
    features: float = 0.5
    """Weight of the layers' outputs beside the prediction, 0 and up (the paper's beta)."""

    def __post_init__(self) -> None:
        if (
            not 0 < self.minutes < math.inf
            or not 0 < self.rate < math.inf
            or self.batch < 1
            or self.features < 0
        ):
            raise ValueError(
                "minutes and rate must be above 0, batch 1 or more and features 0 or more, "
                f"got {self.minutes}, {self.rate}, {self.batch}, {self.features}"
            )

    def __call__(self, model: Model, prompts: Sequence[str], seed: int = 0) -> tuple[nn.Module, list[float]]:
        """The linear network, and its relative squared error over the trajectories it learned from."""
        student = _student(model.denoise.net)
        best = torch.optim.AdamW(_learning(student), lr=self.rate, weight_decay=1e-4)
        errors: list[float] = []
        began, turn = time.monotonic(), 0
        while (passed := (time.monotonic() - began) / (60 * self.minutes)) < 1:
            told = [prompts[(turn * self.batch + i) % len(prompts)] for i in range(self.batch)]
            for group in best.param_groups:
                group["lr"] = self.rate * min(1.0, (turn + 1) / 5) * (1 - passed) ** 0.5
            errors.append(self._trajectory(model, student, best, told, seed + turn * self.batch))
            turn += 1
        return student.requires_grad_(False), errors

    def _trajectory(
        self, model: Model, student: nn.Module, best: torch.optim.Optimizer, told: Sequence[str], seed: int
    ) -> float:
        """Every step of one run of the teacher, unguided; the mean error."""
        own, denoise, total = model.defaults, model.denoise, 0.0
        ts = model.default_schedule(own.width, own.height)(own.steps, denoise.path)
        noise = SeededNoise.batch(seed, len(told), model.latent_shape(own.width, own.height))
        cond, state = model.encode(told, key="pos"), State(begin(denoise.path, noise(), ts[0]))
        for t, u in pairwise(ts):
            best.zero_grad(set_to_none=True)
            pred, error = self._lesson(model, student, state.x, t, cond)
            best.step()
            total += float(error)
            state = Ddim()(_known(pred), state, t, u, denoise.path, noise)
        return total / (len(ts) - 1)

    def _lesson(
        self, model: Model, student: nn.Module, x: Tensor, t: float, cond: Cond
    ) -> tuple[Pred, Tensor]:
        """The teacher's answer; and the student's error, of which the gradients are then in place."""
        teacher = model.denoise.net
        with torch.no_grad(), _heard(teacher) as heard, outputs(teacher) as wanted:
            (pred,) = model.denoise(x, t, cond)
        args, kwargs, (goal, *_) = heard[-1]
        with outputs(student) as ours:
            out = student(*args, **kwargs)[0]
        loss = error = relative(out, goal)
        if self.features:
            parts = [relative(a, b) for a, b in zip(ours, wanted, strict=True)]
            loss = loss + self.features * torch.stack(parts).mean()
        loss.backward()
        return pred, error.detach()

    def held(self, model: Model) -> int:
        """Bytes at the peak of learning beside the model's weights: the student's, its gradients, their two moments
        and what is kept for the way back."""
        teacher, own = model.denoise.net, model.defaults
        with weightless([teacher]):
            student = _student(teacher)
        learned = sum(p.nbytes for p in _learning(student))
        cond = model.encode([""] * self.batch, key="pos")
        cond = Cond(cond.key, {name: t.to("meta") for name, t in cond.embeds.items()})

        def act() -> None:
            _learning(student)
            x = torch.empty(self.batch, *model.latent_shape(own.width, own.height), device="meta")
            with torch.enable_grad():
                self._lesson(model, student, x, model.denoise.path.start * 0.5, cond)

        on_processor = next(teacher.parameters()).device.type == "cpu"
        need = rehearse(act, [teacher, student], processor=on_processor)
        return int(GAPS * need.peak) + 2 * learned + sum(p.nbytes for p in student.parameters())


def _student(teacher: nn.Module) -> nn.Module:
    student = copy.deepcopy(teacher)
    for module in self_attentions(student).values():
        mount(module)
    return student


def _learning(student: nn.Module) -> list[nn.Parameter]:
    """What of it learns, and is told so."""
    found = [p for module in self_attentions(student).values() for p in module.parameters()]
    return [p.requires_grad_(True) for p in found]


def _known(pred: Pred) -> Predict:
    """What was computed already."""
    return lambda x, t: pred


def relative(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean() / b.square().mean().clamp_min(1e-12)


@contextmanager
def _heard(net: nn.Module) -> Iterator[list[tuple[Any, Any, Any]]]:
    """What it is given and what it answers, call by call."""
    calls: list[tuple[Any, Any, Any]] = []
    handle = net.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((args, kwargs, out)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def outputs(net: nn.Module) -> Iterator[list[Tensor]]:
    """What each self-attention layer gives, in order."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, args, out: seen.append(out))
        for module in self_attentions(net).values()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
