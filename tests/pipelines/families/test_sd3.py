"""Stable Diffusion 3 against diffusers, with all text encoders and without some."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from agreement import SIZES, Case, agree, every_technique, opened, relative
from sfumato.pipelines.errors import BadWeights
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage

ENCODERS = {"clip": "text_encoder", "clip 2": "text_encoder_2", "t5": "text_encoder_3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.sd3(tmp_path_factory.mktemp("sd3") / "whole")


def without(folder: Path, *names: str) -> Path:
    """The folder, less some text encoders."""
    copy = folder.with_name("no " + " ".join(names))
    if not copy.exists():
        shutil.copytree(folder, copy)
        index = json.loads((copy / "model_index.json").read_text())
        for name in names:
            part = ENCODERS[name]
            index[part] = index[part.replace("text_encoder", "tokenizer")] = [None, None]
            shutil.rmtree(copy / part)
        (copy / "model_index.json").write_text(json.dumps(index))
    return copy


@pytest.fixture(scope="module", params=["whole", "t5"])
def pair(request: Any, folder: Path) -> tuple[Any, Any]:
    if request.param == "whole":
        return opened(folder)
    _, pipe = opened(folder)
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    return open_model(without(folder, "t5")), pipe


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, Case())


def test_missing_clips_say_zeros(folder: Path) -> None:
    whole = open_model(folder).encode(["a red cube"], key="pos").embeds
    for names, kept in (
        (("clip",), slice(24, 56)),
        (("clip 2",), slice(0, 24)),
        (("clip", "clip 2"), slice(0, 0)),
    ):
        some = open_model(without(folder, *names)).encode(["a red cube"], key="pos").embeds
        blank_text, blank_pooled = torch.zeros_like(whole["text"]), torch.zeros_like(whole["pooled"])
        blank_text[:, :77, kept] = whole["text"][:, :77, kept]
        blank_text[:, 77:] = whole["text"][:, 77:]
        blank_pooled[:, kept] = whole["pooled"][:, kept]
        torch.testing.assert_close(some["text"], blank_text)
        torch.testing.assert_close(some["pooled"], blank_pooled)


def test_the_longest_encoder_counts_the_words(folder: Path) -> None:
    assert open_model(folder).limits.tokens == 256
    assert open_model(without(folder, "t5")).limits.tokens == 77
    with pytest.raises(BadWeights, match="names no text encoder"):
        open_model(without(folder, *ENCODERS))


def test_every_prompt_counts(folder: Path) -> None:
    model, ask = open_model(folder), {"width": 64, "height": 64, "steps": 2}
    draw = TextToImage(model)
    assert relative(draw("a blue cube", **ask).latents, draw("two", **ask).latents) > 1e-3


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
