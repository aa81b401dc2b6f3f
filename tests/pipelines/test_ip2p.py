"""Two scales: the closed form on Gaussians, neutrality, evaluations, refusals."""

from __future__ import annotations

import pytest
import torch
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.guidance.ip2p import Ip2p
from sfumato.pipelines.protocols import Cond, Conds
from toys import GaussianDenoiser, gaussian, means, paths

PATHS = paths()


class Seeing(GaussianDenoiser):
    """The mean of a condition is shifted by its picture."""

    def __call__(self, x, t, *conds):
        self.keys.append(tuple(c.key for c in conds))
        means = [(c.embeds["mu"] + c.embeds["beside"]).to(x) for c in conds]
        return [gaussian(self.path, mean, self.s)(x, t) for mean in means]


def seeing(pos: float = 1.0, neg: float | None = -0.5, picture: float = 0.25) -> Conds:
    beside = torch.tensor(picture)
    return Conds(*(c and Cond(c.key, {**c.embeds, "beside": beside}) for c in means(pos, neg)))


@pytest.mark.parametrize("path", PATHS)
def test_scores_add_up(path):
    """With equal spreads: the mean is blank + picture (neg - blank) + scale (pos - neg)."""
    denoise = Seeing(PATHS[path], 0.5)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (PATHS[path].start, 0.4, 0.05):
        got = Ip2p(3.0, 2.0)(denoise, seeing())(x, t)
        want = gaussian(PATHS[path], -0.5 + 2.0 * 0.25 + 3.0 * 1.5, 0.5)(x, t)
        torch.testing.assert_close(got.x0, want.x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.eps, want.eps, rtol=1e-12, atol=1e-12)


def test_evaluations_and_neutral_settings():
    denoise, x = Seeing(PATHS["vp"]), torch.ones(1, 4)
    assert torch.equal(
        Ip2p(1.0, 1.0)(denoise, seeing(neg=None))(x, 0.5).x0, denoise(x, 0.5, seeing().pos)[0].x0
    )
    assert torch.equal(Ip2p(3.0, 1.0)(denoise, seeing())(x, 0.5).x0, Cfg(3.0)(denoise, seeing())(x, 0.5).x0)
    Ip2p(3.0, 2.0)(denoise, seeing())(x, 0.5)
    assert denoise.keys == [("pos",), ("pos",), ("pos", "neg"), ("pos", "neg"), ("pos", "neg", "neg/blank")]


def test_bfloat16_stays_bfloat16():
    conds = Conds(*(Cond(c.key, {k: v.bfloat16() for k, v in c.embeds.items()}) for c in seeing() if c))
    got = Ip2p()(Seeing(PATHS["flow"]), conds)(torch.ones(1, 4).bfloat16(), 0.5)
    assert got.x0.dtype == got.eps.dtype == torch.bfloat16


def test_refusals():
    for make, words in (
        (lambda: Ip2p(-1.0), "scale must be in 0..100"),
        (lambda: Ip2p(picture=101.0), "picture must be in 0..100"),
        (lambda: Ip2p()(Seeing(PATHS["vp"]), seeing(neg=None)), "needs a negative condition"),
        (lambda: Ip2p()(Seeing(PATHS["vp"]), means()), "sees a picture"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
