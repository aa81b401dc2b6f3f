"""Prompts encoded once, with the bits of a run of their own; pictures of one batch with seeds of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.remembered import Remembered, size
from sfumato.pipelines.text_to_image import TextToImage

SMALL = {"width": 64, "height": 64, "steps": 2}
PROMPTS = ("a red cube", "a blue mug", "a red cube")


@pytest.fixture(scope="module", params=["flux", "sd"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tiny") / request.param
    make = {"flux": tiny_models.flux, "sd": tiny_models.stable_diffusion}[request.param]
    return open_model(make(folder))


def test_each_prompt_goes_through_the_encoders_once(model: Any) -> None:
    encoder = Remembered(model)
    for _ in range(2):
        found = encoder(PROMPTS, key="pos")
        for name, value in found.embeds.items():
            alone = [model.encode([prompt], key="pos").embeds[name] for prompt in PROMPTS]
            assert torch.equal(value, torch.cat(alone)), name
    assert (encoder.calls, encoder.asked) == (2, 6)
    encoder(["a red cube"], key="neg")
    encoder(["a red cube"], key="neg/probe")
    assert encoder.calls == 3, "a negative prompt may be read in another way"


def test_chunks_of_other_lengths_are_encoded_together(model: Any) -> None:
    prompts = ["a cube", "a cube BREAK in snow"]
    found, whole = Remembered(model)(prompts, key="pos"), model.encode(prompts, key="pos")
    for name, value in whole.embeds.items():
        torch.testing.assert_close(found.embeds[name], value.expand_as(found.embeds[name]))


def test_no_more_is_kept_than_there_is_room_for(model: Any) -> None:
    one = size(model.encode(["a"], key="pos").embeds)
    encoder = Remembered(model, room=2 * one)
    for prompt in "abcabc":
        encoder([prompt], key="pos")
    assert encoder.calls == 6
    encoder(["b"], key="pos")
    assert encoder.calls == 6, "the last two are there"


def test_pictures_of_a_batch_have_seeds_of_their_own(model: Any) -> None:
    pipe = TextToImage(model, guidance=Cfg(4.0), encoder=Remembered(model))
    many = pipe(PROMPTS, negative=["", "blur", ""], seed=(7, 3, 9), **SMALL)
    assert many.seeds == (7, 3, 9)
    for at, (prompt, negative, seed) in enumerate(zip(PROMPTS, ("", "blur", ""), (7, 3, 9), strict=True)):
        one = TextToImage(model, guidance=Cfg(4.0))(prompt, negative=negative, seed=seed, **SMALL)
        torch.testing.assert_close(many.latents[at], one.latents[0], rtol=1e-5, atol=1e-5)


def test_seeds_must_be_as_many_as_images(model: Any) -> None:
    pipe = TextToImage(model)
    with pytest.raises(BadInput, match="2 seeds for 3 images"):
        pipe(PROMPTS, seed=(1, 2), **SMALL)
    with pytest.raises(BadInput, match="seed"):
        pipe(PROMPTS, seed=(1, -2, 3), **SMALL)
