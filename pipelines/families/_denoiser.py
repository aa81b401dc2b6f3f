"""One denoiser for all families: conditions are batched, and what the net predicts becomes (x0, eps)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..moment import evaluating
from ..protocols import Cond, Path, Pred

Call = Callable[[Any, Tensor, float, Mapping[str, Tensor]], Tensor]
"""(net, x [N,...] in the net's precision, path time t, embeds [N,...]) -> what the net predicts, shaped like x."""


@dataclass(eq=False)
class NetDenoiser:
    """`kind` says what `call` returns: epsilon, v_prediction, sample, or flow (eps - x0)."""

    net: nn.Module
    path: Path
    dtype: torch.dtype
    kind: str
    call: Call

    def __call__(self, x: Tensor, t: float, *conds: Cond) -> list[Pred]:
        a, s = self.path.alpha(t), self.path.sigma(t)
        found: dict[int, Pred] = {}
        for group in alike(conds):
            some = [conds[i] for i in group]
            embeds = {name: stacked(some, name, len(x), self.dtype) for name in some[0].embeds}
            latents = x.to(self.dtype).repeat(len(some), *[1] * (x.ndim - 1))
            with evaluating([cond.key for cond in some]):
                out = self.call(self.net, latents, t, embeds).to(x.dtype)
            for i, part in zip(group, out.chunk(len(group)), strict=True):
                found[i] = ESTIMATES[self.kind](x, part, a, s)
        return [found[i] for i in range(len(conds))]


def alike(conds: Sequence[Cond]) -> list[list[int]]:
    """Which conditions can share one network call: those whose embeds have the same names and shapes."""
    groups: dict[Any, list[int]] = {}
    for i, cond in enumerate(conds):
        shape = tuple(sorted((name, tuple(value.shape[1:])) for name, value in cond.embeds.items()))
        groups.setdefault(shape, []).append(i)
    return list(groups.values())


def stacked(conds: Sequence[Cond], name: str, batch: int, dtype: torch.dtype) -> Tensor:
    """One embed of several conditions along the batch axis, [len(conds) * batch, ...].

    Features get the net's precision; ids, masks and numbers (one per image) keep theirs.
    """
    parts = []
    for cond in conds:
        value = cond.embeds[name]
        if value.shape[0] not in (1, batch):
            raise BadInput(
                "prompt", f"{name} of {cond.key!r} is for {value.shape[0]} images, x holds {batch}"
            )
        parts.append(value.expand(batch, *value.shape[1:]))
    together = torch.cat(parts)
    return together.to(dtype) if together.is_floating_point() and together.ndim > 1 else together


def _from_eps(x: Tensor, out: Tensor, a: float, s: float) -> Pred:
    return Pred((x - s * out) / a, out)


def _from_v(x: Tensor, out: Tensor, a: float, s: float) -> Pred:
    """v = alpha eps - sigma x0, both divided by their length (which is 1 on VP): finite at both ends."""
    square = a * a + s * s
    length = math.sqrt(square)
    return Pred(a / square * x - s / length * out, s / square * x + a / length * out)


def _from_sample(x: Tensor, out: Tensor, a: float, s: float) -> Pred:
    return Pred(out, (x - a * out) / s if s > 0 else torch.zeros_like(x))


def _from_flow(x: Tensor, out: Tensor, a: float, s: float) -> Pred:
    """x_t = (1 - s) x0 + s eps and the output is eps - x0."""
    return Pred(x - s * out, x + a * out)


ESTIMATES: dict[str, Callable[[Tensor, Tensor, float, float], Pred]] = {
    "epsilon": _from_eps,
    "v_prediction": _from_v,
    "sample": _from_sample,
    "flow": _from_flow,
}
