"""CFG-parallel: the conditions of a step are spread over processes, each evaluates its own, all get all answers.

It stands between guidance and network, so any guidance that asks for several conditions in one call (cfg, cfgpp, ip2p,
cfg-rescale ...) is spread, of any family. Sent per evaluation are x0 and eps of each condition, nothing of the
network's inside. In one process the conditions share a batch; here each has its own, which may change the last bits
where a matrix product's order of sums depends on the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..families._common import Checkpoint
from ..protocols import Cond, Denoiser, Model, Path, Pred
from .group import Team


@dataclass(eq=False)
class Spread:
    """A denoiser: condition i is answered by process i modulo their number."""

    denoise: Denoiser
    team: Team
    path: Path = field(init=False)
    net: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.path, self.net = self.denoise.path, self.denoise.net

    def __call__(self, x: Tensor, t: float, *conds: Cond) -> list[Pred]:
        if self.team.size == 1 or len(conds) < 2:
            return self.denoise(x, t, *conds)
        own = conds[self.team.rank :: self.team.size]
        each = -(-len(conds) // self.team.size)
        answers = x.new_zeros(each, 2, *x.shape)
        if own:
            for place, pred in zip(answers, self.denoise(x, t, *own), strict=False):
                place.copy_(torch.stack(pred))
        found = self.team.gather(answers)
        rows = [found[i % self.team.size][i // self.team.size] for i in range(len(conds))]
        return [Pred(row[0], row[1]) for row in rows]


def spread(model: Model, team: Team) -> Model:
    """The model, whose guidance is shared out; every process of the team must make the same calls."""
    if not isinstance(model, Checkpoint):
        raise BadInput("model", f"{model.name} is no opened checkpoint; open it with open_model")
    return replace(model, denoise=Spread(model.denoise, team))
