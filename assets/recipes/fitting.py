"""One training loop for all recipes: a time budget, EMA, checkpoints, exact resume, a log line now and then.

The learning rate warms up, stays, and falls linearly to zero over the last part of the time budget. The state before
that fall is kept as `stable.pt`, so that a later run goes on from there with a new budget instead of from a cooled
model. Checkpoints hold this run's own tensors only and are read with `weights_only=True`.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss = Callable[[int, torch.Generator], Mapping[str, Tensor]]
"""(step, generator) -> named terms; the term "loss" is minimised, the others are logged."""


@dataclass(frozen=True)
class Fit:
    """minutes: wall-clock budget; lr: peak learning rate; warmup: steps; cooldown: share of the budget; ema: decay."""

    minutes: float
    lr: float
    warmup: int = 200
    cooldown: float = 0.25
    ema: float = 0.999
    clip: float = 1.0
    save_minutes: float = 5.0
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, not {self.minutes}")


class Average:
    """Exponential moving average of a module, with a short memory at first."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for mine, its in zip(self.module.parameters(), module.parameters(), strict=True):
            mine.lerp_(its, weight)
        for mine, its in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(its)


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(place: torch.device) -> bool:
    """Whether matrix products in bfloat16 run natively there; emulated they are several times slower than float32."""
    return place.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


@contextmanager
def fast_arithmetic(place: torch.device) -> Iterator[None]:
    """bfloat16 autocast where it pays; on processors attention as plain products.

    PyTorch's fused attention for processors takes twice as long backwards on a few hundred tokens.
    """
    attention = sdpa_kernel(SDPBackend.MATH) if place.type == "cpu" else nullcontext()
    with torch.autocast(place.type, torch.bfloat16, enabled=has_bfloat16(place)), attention:
        yield


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


class Terms:
    """Means of loss terms since they were last asked for; a term without a value in a step (NaN) is left out."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self.seen[name].append(value.detach())

    def means(self) -> dict[str, float]:
        found = {name: torch.stack(values).nanmean() for name, values in self.seen.items()}
        self.seen.clear()
        return {name: round(float(value), 6) for name, value in found.items()}


def fit(
    module: nn.Module, optimiser: torch.optim.Optimizer, loss: Loss, settings: Fit, folder: Path
) -> nn.Module:
    """Train until the budget is spent, from `folder/stable.pt` on if it is there; returns the averaged module.

    The generator that `loss` gets lives on the module's device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    average, step = Average(module, settings.ema), 0
    place = next(module.parameters()).device
    stable = folder / "stable.pt"
    if stable.exists():
        state = torch.load(stable, map_location=place, weights_only=True)
        module.load_state_dict(state["module"])
        average.module.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]

    def keep() -> None:
        weights = {"module": module.state_dict(), "average": average.module.state_dict()}
        save(stable, {**weights, "optimiser": optimiser.state_dict(), "step": step})

    budget, begin = settings.minutes * 60, time.monotonic()
    last_save, cooled = begin, False
    log, since = (folder / "log.jsonl").open("a"), Terms()
    while (spent := time.monotonic() - begin) < budget:
        left = (1 - spent / budget) / settings.cooldown
        if (left < 1 and not cooled) or (
            left >= 1 and time.monotonic() - last_save > settings.save_minutes * 60
        ):
            keep()
            last_save, cooled = time.monotonic(), left < 1
        lr = settings.lr * min(1.0, left, (step + 1) / settings.warmup)
        for group in optimiser.param_groups:
            group["lr"] = lr
        rng = torch.Generator(place).manual_seed(settings.seed * 1_000_003 + step)
        with fast_arithmetic(place):
            terms = loss(step, rng)
        optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        optimiser.step()
        average.update(module, step)
        since.add(terms)
        if step % settings.log_every == 0:
            row = since.means()
            if not math.isfinite(float(terms["loss"].detach())):
                raise ArithmeticError(f"the loss is {row['loss']} at step {step}; start again from {stable}")
            row |= {"step": step, "minutes": round(spent / 60, 2), "lr": lr, "norm": round(float(norm), 3)}
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(row, flush=True)
        step += 1
    if not cooled:  # the budget was shorter than a step or two
        keep()
    save(folder / "final.pt", {"average": average.module.state_dict(), "step": step})
    return average.module
