"""The task by itself: one image at any batch size, refusals that name the remedy, resume, cancel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.loop import Cancelled, Control
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.schedules.uniform import Uniform
from sfumato.pipelines.text_to_image import TextToImage

SMALL = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module", params=["flux", "sd"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tiny") / request.param
    make = {"flux": tiny_models.flux, "sd": tiny_models.stable_diffusion}[request.param]
    return open_model(make(folder))


@pytest.mark.parametrize("sampler", [None, Ddim(eta=1.0)])
def test_batch_is_its_singles(model: Any, sampler: Any) -> None:
    draw = TextToImage(model, sampler=sampler, guidance=Cfg(4.0))
    many = draw("a red cube", seed=11, count=3, **SMALL)
    assert many.seeds == (11, 12, 13)
    for i, seed in enumerate(many.seeds):
        one = draw("a red cube", seed=seed, **SMALL)
        torch.testing.assert_close(many.pixels[i], one.pixels[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(many.latents[i], one.latents[0], rtol=1e-5, atol=1e-5)


def test_prompts_are_their_singles(model: Any) -> None:
    draw = TextToImage(model, guidance=Cfg(4.0))
    many = draw(["one", "two"], negative=["x", "y"], seed=3, count=2, **SMALL)
    assert len(many.pixels) == 4
    for i, (prompt, negative) in enumerate([("one", "x"), ("one", "x"), ("two", "y"), ("two", "y")]):
        one = draw(prompt, negative=negative, seed=3 + i, **SMALL)
        torch.testing.assert_close(many.pixels[i], one.pixels[0], rtol=0, atol=1e-5)


def test_twice_is_the_same(model: Any) -> None:
    draw = TextToImage(model)
    first, again, other = (draw("a", seed=s, **SMALL) for s in (5, 5, 6))
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)


def test_result(model: Any) -> None:
    found = TextToImage(model)("a " * 5000, width=96, height=64, steps=1, count=2)
    assert found.pixels.shape == (2, 3, 64, 96)
    assert [image.size for image in found.images] == [(96, 64)] * 2
    assert found.dropped[0].startswith("a a")
    assert all(seconds >= 0 for seconds in found.timings)


def test_defaults_come_from_the_model(model: Any) -> None:
    model = replace(model, defaults=model.defaults._replace(width=32, height=64, steps=3, sampler="heun"))
    steps = []
    found = TextToImage(model)("a", control=Control(on_step=lambda event: steps.append(event.step)))
    assert found.pixels.shape[2:] == (64, 32)
    assert steps == [1, 2, 3]
    with pytest.raises(BadInput, match="no technique 'huen'; the nearest are heun"):
        TextToImage(replace(model, defaults=model.defaults._replace(sampler="huen")))("a")


BAD = [
    ({"width": 65}, "width", r"width = 65 must be a multiple of (8|16).*nearest: 64 or (72|80)"),
    ({"height": 100_000}, "height", "height = 100000 .*nearest: 4096"),
    ({"width": 0}, "width", "width = 0"),
    ({"width": -64}, "width", "width = -64"),
    ({"height": 64.0}, "height", "not a whole number"),
    ({"steps": 0}, "steps", "steps = 0 is too small; give 1 or more"),
    ({"steps": True}, "steps", "not a whole number"),
    ({"count": 0}, "count", "count = 0 is too small"),
    ({"count": "2"}, "count", "not a whole number"),
    ({"seed": -1}, "seed", "seed = -1 is too small"),
    ({"seed": 2**63 - 1, "count": 2}, "seed", "too large"),
    ({"negative": ["a", "b"]}, "negative", "2 negative prompts for 1"),
]


@pytest.mark.parametrize(("setting", "field", "message"), BAD)
def test_refusals(model: Any, setting: dict, field: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        TextToImage(model)("a", **{**SMALL, **setting})
    assert caught.value.field == field


def test_resume_and_finished_latents(model: Any) -> None:
    """The last checkpoint holds the finished latents, before decoding; each leads to the same image."""
    draw, saved = TextToImage(model, sampler=Ddim(eta=1.0), schedule=Uniform()), []
    whole = draw("a", control=Control(on_checkpoint=saved.append), seed=4, count=2, **SMALL)
    assert torch.equal(saved[-1].state.x, whole.latents)
    for checkpoint in saved:
        again = draw("a", control=Control(resume=checkpoint), seed=4, count=2, **SMALL)
        assert torch.equal(again.pixels, whole.pixels)


def test_cancel(model: Any) -> None:
    with pytest.raises(Cancelled):
        TextToImage(model)("a", control=Control(cancelled=lambda: True), **SMALL)
