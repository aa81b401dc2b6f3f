"""Windows in time: exact where frames are independent, smooth where they are not."""

from __future__ import annotations

import pytest
import torch
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.protocols import Pred
from sfumato.pipelines.samplers.dpmpp_2m import dpmpp_2m
from sfumato.video.wraps.windows import Windows
from toys import GaussianDenoiser, ToyDenoiser, biases, means, paths


@pytest.mark.parametrize("frames, size, overlap", [(9, 4, 2), (10, 4, 3), (7, 3, 0), (16, 5, 4), (5, 4, 1)])
@pytest.mark.parametrize("path", ["vp", "flow", "ve"])
def test_independent_frames_come_out_as_in_one_piece(frames, size, overlap, path):
    p = paths()[path]
    x = SeededNoise.batch(0, 2, (3, frames, 4, 4))() * p.sigma(p.start)
    ts = [p.start, 0.6 * p.start, 0.2 * p.start, 0.0]
    denoise = GaussianDenoiser(p)
    whole = Pipeline(denoise, dpmpp_2m, Cfg(2.0))(x, means(), ts)
    windowed = Pipeline(denoise, dpmpp_2m, Cfg(2.0), wraps=(Windows(size, overlap),))(x, means(), ts)
    assert torch.equal(windowed, whole)


def by_window(x, t):
    """Says in every frame which frame its window began with (x holds the frame numbers)."""
    return Pred(torch.zeros_like(x) + x[:, :, :1], torch.zeros_like(x))


def test_cross_fade_is_linear():
    x = torch.arange(10.0).view(1, 1, 10, 1, 1)
    got = Windows(6, 2)(by_window, paths()["flow"])(x, 0.5).x0.flatten()
    want = [0, 0, 0, 0, 4 / 3, 8 / 3, 4, 4, 4, 4]
    torch.testing.assert_close(got, torch.tensor(want))


def test_every_window_has_full_size_and_every_frame_is_covered():
    sizes, path = [], paths()["flow"]

    def predict(x, t):
        sizes.append(x.shape[2])
        return Pred(torch.ones_like(x), torch.ones_like(x))

    for frames in range(5, 30):
        got = Windows(5, 2)(predict, path)(torch.zeros(1, 1, frames, 1, 1), 0.5)
        assert (got.x0 == 1).all() and (got.eps == 1).all()
    assert set(sizes) == {5}


def test_a_clip_no_longer_than_the_window_is_one_call():
    denoise = ToyDenoiser(paths()["flow"])
    x = SeededNoise.batch(0, 1, (4, 6, 3, 3))()
    whole = Pipeline(denoise)(x, biases(), [1.0, 0.5, 0.0])
    calls = len(denoise.keys)
    assert torch.equal(Pipeline(denoise, wraps=(Windows(6, 2),))(x, biases(), [1.0, 0.5, 0.0]), whole)
    assert len(denoise.keys) == 2 * calls


def test_errors():
    for make, words in (
        (lambda: Windows(0), "size must be 1 or more, got 0"),
        (lambda: Windows(4, 4), r"overlap must be in 0..3 \(size - 1\), got 4"),
        (
            lambda: Windows(4, 1)(by_window, paths()["flow"])(torch.zeros(1, 4, 8, 8), 0.5),
            r"needs x \[B,C,F,H,W\]",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make()
