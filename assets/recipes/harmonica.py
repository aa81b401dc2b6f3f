"""Learn when a model's blocks may repeat themselves: a table of which block is computed at which step.

As in HarmoniCa (arXiv:2410.01723, section 3) trajectories are whole, each step going on from what the table made of the
last one, and what counts is the error of the final picture. The paper trains a router by gradients of single steps,
weighed by a proxy of that error; stale features lead every later step the same way, which a single step doesn't see,
and tables that were learned so here lost to fixed intervals. So the final latents themselves are compared: the table
begins with a few full steps and goes on in fixed intervals, and a change stays if it brings them nearer to those of the
full run. First whole steps move, then bundles of neighbouring blocks. Blocks are routed whole, where the paper routes
attention and MLP apart. No training pictures are needed.

A trial costs a run of the pictures or less, as it goes on from the last full step before the change if it can. At 20
steps and 6 bundles there are one or two hundred of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from ...pipelines import moment
from ...pipelines.blocks import Span, Streams, cut, spans, stacks
from ...pipelines.guidance.cfg import Cfg
from ...pipelines.noise import SeededNoise
from ...pipelines.patches._reuse import minus, plus, weighed
from ...pipelines.patches._table import ReuseTable
from ...pipelines.patches._weights import taylor
from ...pipelines.paths import begin
from ...pipelines.protocols import Conds, Model, Path, Pred, Predict
from ...pipelines.stopping import poll

Rows = tuple[tuple[int, ...], ...]
"""[steps][bundles], 1 where it is computed."""
Told = Callable[[int, float, ReuseTable], None]
"""(trials until now, decibels of the final latents' error, the best table until now)."""
LEADS = 5
"""Full steps at first that are tried, at most."""
PASSES = 4
"""Over all entries, at most."""


@dataclass(frozen=True)
class Harmonica:
    """How a table is learned."""

    computed: float = 0.5
    """Share of the block evaluations that are computed, above 0 to 1; 1 is off."""
    pictures: int = 12
    """To learn from, 1 and up."""
    bundles: int = 6
    """Parts of the network that are routed apart, 1 and up; there are no more than blocks."""
    scale: float = 1.0
    """Guidance scale of the trajectories, 1 and up; 1 is off."""
    batch: int = 12
    """Of them at once, 1 and up; fewer take less memory."""
    order: int = 0
    """Of the differences by which blocks are forecast, 0..2: 0 for block-cache, the order of a taylorseer."""

    def __post_init__(self) -> None:
        if not 0 < self.computed <= 1:
            raise ValueError(f"computed must be above 0 and at most 1, got {self.computed}")
        if self.pictures < 1 or self.bundles < 1 or self.batch < 1:
            raise ValueError(
                "pictures, bundles and batch must be 1 or more, "
                f"got {self.pictures}, {self.bundles}, {self.batch}"
            )
        if not 1 <= self.scale <= 100:
            raise ValueError(f"scale must be in 1..100, got {self.scale}")
        if not 0 <= self.order <= 2:
            raise ValueError(f"order must be in 0..2, got {self.order}")

    def of_order(self, order: int) -> Harmonica:
        """The same for blocks that are forecast. Those go wrong seldom and then far, mostly where an early step is left
        out, which few pictures show; single bundles gain nothing there.
        """
        return replace(self, order=order, pictures=48, bundles=1) if order else replace(self, order=0)

    def __call__(
        self, model: Model, prompts: Sequence[str], steps: int, seed: int = 0, told: Told | None = None
    ) -> ReuseTable:
        """The table for a run of so many steps at the model's own size and schedule."""
        net = model.denoise.net
        blocks = [block for stack in stacks(net) for block in stack]
        count = min(self.bundles, len(blocks))
        bundle_of = [i * count // len(blocks) for i in range(len(blocks))]
        first = max(1, int(self.computed * steps + 1e-9))
        rows: Rows = ((1,) * count,) * steps

        def table(rows: Rows) -> ReuseTable:
            compute = tuple(tuple(row[bundle] for bundle in bundle_of) for row in rows)
            return ReuseTable(type(net).__name__, tuple(block.name for block in blocks), compute, self.order)

        def better(trials: int, decibels: float, rows: Rows) -> None:
            if told is not None:
                told(trials, decibels, table(rows))

        if first < steps:
            reuse = _Reuse(bundle_of, self.order)
            with spans(cut([[block] for block in blocks]), reuse.enters, reuse.leaves), torch.no_grad():
                trials = _Trials(reuse, *self._run(model, prompts, steps, seed), better)
                starts = [_even(steps, first, lead, count) for lead in range(1, min(first, LEADS) + 1)]
                rows = trials.keep(min(starts, key=trials))
                rows = _by_bundles(_by_steps(rows, trials), trials, bundle_of)
        return table(rows)

    def _run(
        self, model: Model, prompts: Sequence[str], steps: int, seed: int
    ) -> tuple[list[Predict], Tensor, Sequence[float], Path]:
        """Predictions of each batch, the noise of all, times and path."""
        own, path = model.defaults, model.denoise.path
        ts = model.default_schedule(own.width, own.height)(steps, path)
        texts = [prompts[i % len(prompts)] for i in range(self.pictures)]
        neg = None if self.scale == 1 else model.encode([""], key="neg")
        size = _equal(self.pictures, self.batch)
        predicts = [
            Cfg(self.scale)(model.denoise, Conds(model.encode(texts[i : i + size], key="pos"), neg))
            for i in range(0, self.pictures, size)
        ]
        shape, device = model.latent_shape(own.width, own.height), next(model.denoise.net.parameters()).device
        noise = SeededNoise.batch(seed, self.pictures, shape, device=device)
        return predicts, begin(path, noise(), ts[0]), ts, path


class _Reuse:
    """Blocks that the row at hand leaves out add what is forecast from what they added before."""

    def __init__(self, bundle_of: Sequence[int], order: int) -> None:
        self.bundle_of = bundle_of
        self.order = order
        self.step = 0
        self.row: Sequence[int] = ()
        self._added: dict[tuple[tuple[str, ...], int], list[tuple[int, Streams]]] = {}
        """By the conditions that share the call, and block: (step, what it added), newest first."""

    def begin(self) -> None:
        """Nothing is known any more."""
        self._added.clear()

    def enters(self, span: Span, before: Streams) -> bool:
        return not self.row[self.bundle_of[span.index]]

    def leaves(self, span: Span, before: Streams, after: Streams | None) -> Streams:
        past = self._added.setdefault((moment.keys(), span.index), [])
        if after is None:
            weights = taylor([step for step, _ in past], self.step)
            return plus(before, weighed(weights, [streams for _, streams in past]))
        past.insert(0, (self.step, minus(after, before)))
        del past[self.order + 1 :]
        return after


class _Trials:
    """Tables, and how far each leads from the full run."""

    def __init__(
        self,
        reuse: _Reuse,
        predicts: Sequence[Predict],
        x: Tensor,
        ts: Sequence[float],
        path: Path,
        better: Callable[[int, float, Rows], None],
    ) -> None:
        self._reuse, self._predicts, self._ts, self._path = reuse, predicts, ts, path
        self._better, self._batch = better, _equal(len(x), -(-len(x) // len(predicts)))
        self._known: dict[Rows, float] = {}
        bundles, steps = max(reuse.bundle_of) + 1, len(ts) - 1
        self._rows: Rows = ((1,) * bundles,) * steps
        self._xs = [x]
        """Before each step of `_rows`, and at last."""
        self._xs = self._from(self._rows, 0)
        self._full = self._xs[-1]

    def __call__(self, rows: Rows) -> float:
        """Mean over the pictures of 10 log10 of the final latents' squared error over their square."""
        if rows not in self._known:
            change = next(
                (i for i, pair in enumerate(zip(rows, self._rows, strict=True)) if len({*pair}) > 1), 0
            )
            error = (self._from(rows, self._since(rows, change))[-1] - self._full).square().flatten(1).mean(1)
            share = error / self._full.square().flatten(1).mean(1)
            self._known[rows] = float(10 * share.clamp_min(1e-12).log10().mean())
        return self._known[rows]

    def keep(self, rows: Rows) -> Rows:
        """The table that the next ones are changes of."""
        self._xs, self._rows = self._from(rows, 0), rows
        self._better(len(self._known), self(rows), rows)
        return rows

    def _since(self, rows: Rows, change: int) -> int:
        """The last full step before the first change; the first of all if what was added before it isn't known."""
        if self._reuse.order and any(len({*row}) > 1 for row in rows[:change]):
            return 0
        return max(i for i in range(change + 1) if all(rows[i]))

    def _from(self, rows: Rows, since: int) -> list[Tensor]:
        """`_xs` of these rows, which are like `_rows` before step `since`, a full one."""
        batches = zip(*(x.split(self._batch) for x in self._xs[: since + 1]), strict=True)
        found = [self._of(p, list(xs), rows, since) for p, xs in zip(self._predicts, batches, strict=True)]
        return [torch.cat(xs) for xs in zip(*found, strict=True)]

    def _of(self, predict: Predict, xs: list[Tensor], rows: Rows, since: int) -> list[Tensor]:
        """The same of one batch, whose first steps are `xs`."""

        def at(i: int) -> Pred:
            poll()
            self._reuse.step, self._reuse.row = i, rows[i]
            return predict(xs[i], self._ts[i])

        self._reuse.begin()
        earlier = [i for i in range(since) if all(rows[i])]
        for i in earlier[max(len(earlier) - self._reuse.order, 0) :]:
            at(i)  # what the blocks added then
        for i in range(since, len(rows)):
            xs.append(_next(at(i), self._path, self._ts[i + 1]))
        return xs


def _equal(count: int, most: int) -> int:
    """Pictures of each batch but the last, so that no batch is much smaller."""
    return -(-count // -(-count // most))


def _even(steps: int, first: int, lead: int, count: int) -> Rows:
    """As many full steps: a few that lead, and the others at equal distances."""
    gap = (steps - lead + 1) / (first - lead + 1)
    full = {*range(lead), *(lead - 1 + round(i * gap) for i in range(first - lead + 1))}
    return tuple((int(i in full),) * count for i in range(steps))


def _by_steps(rows: Rows, trials: _Trials) -> Rows:
    """Full steps moved to their neighbours or to the end, the best move at a time, until none helps."""
    while True:
        full = [i for i, row in enumerate(rows) if row[0]]
        moves = {(a, b) for a in full[1:] for b in (a - 1, a + 1, len(rows) - 1)}
        tried = [_swapped(rows, a, b) for a, b in sorted(moves) if b < len(rows) and b not in full]
        best = min(tried, key=trials, default=rows)
        if trials(best) >= trials(rows):
            return rows
        rows = trials.keep(best)


def _by_bundles(rows: Rows, trials: _Trials, bundle_of: Sequence[int]) -> Rows:
    """Entries swapped: those that gain most by being computed for those that lose least by being left out."""
    sizes = [len(list(group)) for _, group in groupby(bundle_of)]
    places = [(i, n) for i in range(1, len(rows)) for n in range(len(sizes))] if len(sizes) > 1 else []
    for _ in range(PASSES):
        changes = sorted((trials(_flipped(rows, [place])) - trials(rows), place) for place in places)
        on = [place for _, place in changes if not rows[place[0]][place[1]]]
        off = [place for _, place in changes if rows[place[0]][place[1]]]
        tried = [_flipped(rows, [*on[:count], *off[:count]]) for count in (1, 2, 4, 8, 16)]
        best = min((t for t in tried if _size(t, sizes) <= _size(rows, sizes)), key=trials, default=rows)
        if trials(best) >= trials(rows):
            break
        rows = trials.keep(best)
    return rows


def _swapped(rows: Rows, a: int, b: int) -> Rows:
    order = list(range(len(rows)))
    order[a], order[b] = b, a
    return tuple(rows[i] for i in order)


def _flipped(rows: Rows, places: Sequence[tuple[int, int]]) -> Rows:
    found = [list(row) for row in rows]
    for i, n in places:
        found[i][n] ^= 1
    return tuple(map(tuple, found))


def _size(rows: Rows, sizes: Sequence[int]) -> int:
    return sum(size * one for row in rows for size, one in zip(sizes, row, strict=True))


def _next(pred: Pred, path: Path, u: float) -> Tensor:
    return path.alpha(u) * pred.x0 + path.sigma(u) * pred.eps
