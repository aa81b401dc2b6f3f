"""Guidance that grows along the frames."""

from __future__ import annotations

import pytest
import torch
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.paths import flow
from sfumato.pipelines.protocols import Cond, Conds, Pred
from sfumato.video.guidance.frame_cfg import FrameCfg


class Constant:
    """Says 1 for `pos` and 0 for `neg`."""

    def __init__(self) -> None:
        self.path, self.net, self.calls = flow(), torch.nn.Identity(), 0

    def __call__(self, x: torch.Tensor, t: float, *conds: Cond) -> list[Pred]:
        self.calls += len(conds)
        return [Pred(*[torch.full_like(x, float(cond.key == "pos"))] * 2) for cond in conds]


X, CONDS = torch.zeros(2, 4, 5, 3, 3), Conds(Cond("pos"), Cond("neg"))


def test_is_linear_in_the_frame() -> None:
    found = FrameCfg(1, 3)(Constant(), CONDS)(X, 0.5)
    for part in found:
        assert part[0, 0, :, 0, 0].tolist() == [1, 1.5, 2, 2.5, 3]
    flat = FrameCfg(3, 3)(Constant(), CONDS)(X, 0.5)
    assert torch.equal(flat.x0, Cfg(3)(Constant(), CONDS)(X, 0.5).x0)


def test_scales_of_one_are_off_and_cost_nothing() -> None:
    net = Constant()
    assert torch.equal(FrameCfg(1, 1)(net, Conds(Cond("pos")))(X, 0.5).x0, torch.ones_like(X))
    assert net.calls == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"last must be in 0\.\.100"):
        FrameCfg(1, -1)
    with pytest.raises(ValueError, match="negative"):
        FrameCfg()(Constant(), Conds(Cond("pos")))
    with pytest.raises(ValueError, match="B,C,F,H,W"):
        FrameCfg()(Constant(), CONDS)(X[:, :, 0], 0.5)
