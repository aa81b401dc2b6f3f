"""Inpainting: the known part is exact, the rest is repainted."""

from __future__ import annotations

import pytest
import torch
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.samplers.dpmpp_2m import dpmpp_2m
from sfumato.pipelines.samplers.dpmpp_2m_sde import Dpmpp2mSde
from sfumato.pipelines.samplers.heun import heun
from sfumato.pipelines.samplers.lcm import lcm
from sfumato.pipelines.samplers.unipc import Unipc
from sfumato.pipelines.wraps.keep_known import KeepKnown
from toys import GaussianDenoiser, ToyDenoiser, biases, means, paths

TS = [1.0, 0.8, 0.5, 0.2, 0.0]
SAMPLERS = {"ddim": Ddim(), "2m": dpmpp_2m, "sde": Dpmpp2mSde(), "heun": heun, "unipc": Unipc(), "lcm": lcm}


def setup(shape=(2, 4, 6, 6)):
    noise = SeededNoise.batch(1, shape[0], shape[1:])
    x = noise()
    known = torch.full(shape, 3.0) + torch.randn(shape, generator=torch.Generator().manual_seed(9))
    mask = torch.zeros(shape[0], 1, *shape[2:])
    mask[..., 3:] = 1
    return noise, x, known, mask


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("path", ["vp", "flow3"])
def test_the_known_part_comes_out_exactly(name, path):
    noise, x, known, mask = setup()
    wrap = KeepKnown(known, mask, x)
    got = Pipeline(ToyDenoiser(paths()[path]), SAMPLERS[name], Cfg(2.0), wraps=(wrap,))(
        x, biases(), TS, noise=noise
    )
    torch.testing.assert_close(got[..., :3], known[..., :3], rtol=1e-5, atol=1e-5)
    assert (got[..., 3:] - known[..., 3:]).abs().mean() > 0.5
    assert torch.isfinite(got).all()


def test_the_network_sees_the_known_part_at_its_own_noise():
    _, x, known, mask = setup()
    path, seen = paths()["vp"], []

    def predict(y, t):
        seen.append(y)
        return GaussianDenoiser(path)(y, t, means().pos)[0]

    KeepKnown(known, mask, x)(predict, path)(torch.zeros_like(x), 0.4)
    want = path.alpha(0.4) * known + path.sigma(0.4) * x
    assert torch.equal(seen[0][..., :3], want[..., :3]) and not seen[0][..., 3:].any()


def test_mask_of_ones_changes_nothing_and_soft_masks_blend():
    _noise, x, known, mask = setup()
    denoise = ToyDenoiser(paths()["flow"])
    plain = Pipeline(denoise)(x, biases(), TS)
    ones = KeepKnown(known, torch.ones_like(mask), x)
    assert torch.equal(Pipeline(denoise, wraps=(ones,))(x, biases(), TS), plain)
    half = KeepKnown(known, 0.5 * torch.ones_like(mask), x)
    p = half(lambda y, t: denoise(y, t, biases().pos)[0], denoise.path)(x, 0.5)
    assert torch.isfinite(p.x0).all() and not torch.equal(p.x0, known)


def test_a_clip_and_a_boolean_mask():
    _noise, x, known, mask = setup((1, 4, 3, 6, 6))
    wrap = KeepKnown(known, mask.bool(), x)
    got = Pipeline(ToyDenoiser(paths()["flow"]), Ddim(), Cfg(1.0), wraps=(wrap,))(x, biases(), TS)
    assert torch.equal(got[..., :3], known[..., :3])


def test_errors():
    _, x, known, mask = setup()
    with pytest.raises(ValueError, match=r"mask must be in 0..1, got 0.0..2.0"):
        KeepKnown(known, 2 * mask, x)
    with pytest.raises(ValueError, match=r"noise .* must be shaped like known"):
        KeepKnown(known, mask, x[:1])
    with pytest.raises((ValueError, RuntimeError)):
        KeepKnown(known, torch.ones(3, 1, 6, 6), x)
