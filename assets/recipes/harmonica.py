"""Learn when a model's blocks may repeat themselves: a table of which block is computed at which step.

HarmoniCa (arXiv:2410.01723, section 3): a router [T,N] of T steps and N blocks, where beta = sigmoid(router) tells
whether a block is computed or adds what it added before. Trajectories are whole (each step goes on from the routed
network's own last one), each step's router learns from that step, and its error is weighed by a proxy of the final
picture's error. Here blocks are routed whole, where the paper routes attention and MLP apart. A block is computed with
the probability beta, and gradients go straight through (arXiv:1308.3432): the paper mixes both parts by beta, and what
was mixed at each of many steps looks fresher than what is reused for as long. The final picture's error is that of its
latents. Its proxy lambda_t is the mean squared change of the final latents if all blocks reuse at step t alone, for
each unit of the error of that step, and divided by its mean over t: the paper doesn't divide by the step's error, which
then counts twice. Errors are relative, so that one price fits all networks. No training pictures are needed.

A round costs 2 T network evaluations of a batch, half of them with gradients, and a refresh T^2 / 2 more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...pipelines import moment
from ...pipelines.blocks import Span, Streams, cut, spans, stacks
from ...pipelines.guidance.cfg import Cfg
from ...pipelines.noise import SeededNoise
from ...pipelines.patches._table import ReuseTable
from ...pipelines.paths import begin
from ...pipelines.protocols import Conds, Model, Path, Pred, Predict

OPEN = 0.85
"""Where routers begin: 70 % computed."""


@dataclass(frozen=True)
class Harmonica:
    """How a table is learned."""

    rounds: int = 40
    """Trajectories to learn from, 1 and up."""
    batch: int = 2
    """Pictures in each, 1 and up."""
    price: float = 0.12
    """Of computing all blocks of a step, 0 and up: the higher, the more is reused; 0 is off."""
    rate: float = 0.15
    """Learning rate of the routers, above 0."""
    refresh: int = 20
    """Rounds between new weights of the steps, 1 and up."""
    scale: float = 1.0
    """Guidance scale of the trajectories, 1 and up; 1 is off."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 1 or self.refresh < 1:
            raise ValueError(
                f"rounds, batch and refresh must be 1 or more, got {self.rounds}, {self.batch}, {self.refresh}"
            )
        if not 0 <= self.price < math.inf or not 0 < self.rate < math.inf or not 1 <= self.scale <= 100:
            raise ValueError(
                "price must be 0 or more, rate above 0 and scale in 1..100, "
                f"got {self.price}, {self.rate}, {self.scale}"
            )

    def __call__(self, model: Model, prompts: Sequence[str], steps: int, seed: int = 0) -> ReuseTable:
        """The table for a run of so many steps at the model's own size and schedule."""
        net, own = model.denoise.net, model.defaults
        blocks = [block for stack in stacks(net) for block in stack]
        names = tuple(block.name for block in blocks)
        if self.price == 0:
            return ReuseTable(type(net).__name__, names, ((1,) * len(blocks),) * steps)
        ts = model.default_schedule(own.width, own.height)(steps, model.denoise.path)
        device = next(net.parameters()).device
        rows = [torch.full((len(blocks),), OPEN, device=device, requires_grad=True) for _ in range(steps)]
        routed = _Routed(rows, torch.Generator().manual_seed(seed))
        best = torch.optim.Adam(rows, lr=self.rate)
        weights = torch.ones(steps)
        with spans(cut([[block] for block in blocks]), routed.enters, routed.leaves):
            for turn in range(self.rounds):
                told = [prompts[(turn * self.batch + i) % len(prompts)] for i in range(self.batch)]
                predict = self._predict(model, told)
                noise = SeededNoise.batch(
                    seed + turn * self.batch,
                    self.batch,
                    model.latent_shape(own.width, own.height),
                    device=device,
                )
                x = begin(model.denoise.path, noise(), ts[0])
                if turn % self.refresh == 0:
                    weights = _proxies(routed, predict, x, ts, model.denoise.path)
                self._learn(routed, best, predict, x, ts, model.denoise.path, weights)
        table = [[1] * len(blocks), *((row.sigmoid() > 0.5).int().tolist() for row in rows[1:])]
        return ReuseTable(type(net).__name__, names, tuple(map(tuple, table)))

    def _predict(self, model: Model, told: Sequence[str]) -> Predict:
        neg = None if self.scale == 1 else model.encode([""], key="neg")
        return Cfg(self.scale)(model.denoise, Conds(model.encode(told, key="pos"), neg))

    def _learn(
        self,
        routed: _Routed,
        best: torch.optim.Optimizer,
        predict: Predict,
        x: Tensor,
        ts: Sequence[float],
        path: Path,
        weights: Tensor,
    ) -> None:
        """One trajectory of the routed network; each step's router learns from that step."""
        for i, (t, u) in enumerate(pairwise(ts)):
            routed.step, routed.open = i, True
            with torch.no_grad():
                wanted = predict(x, t)
            routed.open = i == 0
            with torch.set_grad_enabled(i > 0):
                pred = predict(x, t)
                error = _error(pred, wanted, path, t)
            if i > 0:
                best.zero_grad(set_to_none=True)
                (weights[i] * error + self.price * routed.rows[i].sigmoid().mean()).backward()
                best.step()
            x = _next(pred, path, u).detach()


class _Routed:
    """What each block adds, or what it added before."""

    def __init__(self, rows: list[Tensor], chance: torch.Generator) -> None:
        self.rows = rows
        self.chance = chance
        self.forced = False
        """Whether nothing is computed while the blocks are not open."""
        self.step = 0
        self.open = True
        """Whether the blocks are left as they are; what they add is remembered at the first step only."""
        self.added: dict[tuple[tuple[str, ...], int], Streams] = {}
        """By the conditions that share the call, and span."""

    def enters(self, span: Span, before: Streams) -> bool:
        return False

    def leaves(self, span: Span, before: Streams, after: Streams | None) -> Streams:
        assert after is not None
        place = moment.keys(), span.index
        added = tuple(None if q is None or p is None else q - p for p, q in zip(before, after, strict=True))
        if not self.open:
            beta, old = self._gate(self.rows[self.step][span.index]), self.added[place]
            added = tuple(
                None if a is None or b is None else beta * a + (1 - beta) * b
                for a, b in zip(added, old, strict=True)
            )
            after = tuple(
                None if p is None or a is None else p + a for p, a in zip(before, added, strict=True)
            )
        if not self.open or self.step == 0:
            self.added[place] = tuple(None if a is None else a.detach() for a in added)
        return after

    def _gate(self, router: Tensor) -> Tensor:
        """1 where the block is computed, else 0; with the gradient of beta."""
        beta = router.sigmoid()
        drawn = 0.0 if self.forced else float(beta.detach() > torch.rand((), generator=self.chance))
        return beta + (drawn - beta).detach()


@torch.no_grad()
def _proxies(routed: _Routed, predict: Predict, x: Tensor, ts: Sequence[float], path: Path) -> Tensor:
    """lambda_t: how much the final latents change by the error of step t, if all blocks reuse there; the mean is 1."""
    routed.forced, steps = True, len(ts) - 1

    def at(x: Tensor, i: int, *, step: int, reused: bool = False) -> Pred:
        routed.step, routed.open = step, not reused
        return predict(x, ts[i])

    xs, preds = [x], list[Pred]()
    for i in range(steps):
        preds.append(at(xs[-1], i, step=i))
        xs.append(_next(preds[-1], path, ts[i + 1]))
    found = [0.0]
    for i in range(1, steps):
        at(xs[i - 1], i - 1, step=0)  # what the blocks added at the step before
        pred = at(xs[i], i, step=i, reused=True)
        error, end = _error(pred, preds[i], path, ts[i]), _next(pred, path, ts[i + 1])
        for j in range(i + 1, steps):
            end = _next(at(end, j, step=j), path, ts[j + 1])
        found.append(float((end - xs[-1]).square().mean() / error.clamp_min(1e-20)))
    routed.forced = False
    lam = torch.tensor(found)
    return lam / lam[1:].mean().clamp_min(1e-12) if len(found) > 1 else lam


def _next(pred: Pred, path: Path, u: float) -> Tensor:
    return path.alpha(u) * pred.x0 + path.sigma(u) * pred.eps


def _error(pred: Pred, wanted: Pred, path: Path, t: float) -> Tensor:
    """Mean square of the velocity's error, as a share of that of the velocity."""
    v = _velocity(wanted, path, t)
    return (_velocity(pred, path, t) - v).square().mean() / v.square().mean()


def _velocity(pred: Pred, path: Path, t: float) -> Tensor:
    """Finite at both ends of every path."""
    if path.name == "flow":
        return pred.eps - pred.x0
    a, s = path.alpha(t), path.sigma(t)
    return (a * pred.eps - s * pred.x0) / math.hypot(a, s)
