"""Lumina-Next against diffusers. With three channels both guide all of them."""

from typing import Any

import pytest
import tiny_families
from agreement import NEGATIVE, PROMPT, SIZES, Case, agree, every_technique, hears, opened, relative
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.text_to_image import TextToImage

CASE = Case(ask={"clean_caption": False})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Any, Any]]:
    """By their numbers of channels."""
    return {n: opened(tiny_families.lumina_next(tmp_path_factory.mktemp(f"channels{n}"), n)) for n in (3, 4)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("channels", "scale"), [(3, 1.0), (3, 4.0), (4, 1.0)])
def test_is_diffusers(pairs: dict, channels: int, scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pairs[channels], scale, count, size, CASE)


def test_prompt_matters(pairs: dict) -> None:
    hears(pairs[4][0])


def test_guides_all_four_channels(pairs: dict) -> None:
    """diffusers guides three of them and leaves the fourth as the prompt alone has it."""
    model, pipe = pairs[4]
    noise = SeededNoise.batch(7, 1, model.latent_shape(64, 64))()
    ask = {"width": 64, "height": 64, "num_inference_steps": 1, "output_type": "latent", **CASE.ask}
    theirs = pipe(PROMPT, negative_prompt=NEGATIVE, guidance_scale=4.0, latents=noise, **ask).images
    guided, plain = (
        TextToImage(model, guidance=Cfg(scale))(
            PROMPT, negative=NEGATIVE, width=64, height=64, steps=1, seed=7
        ).latents
        for scale in (4.0, 1.0)
    )
    assert relative(guided[:, :3], theirs[:, :3]) < 1e-4
    assert relative(plain[:, 3:], theirs[:, 3:]) < 1e-4
    assert relative(guided[:, 3:], theirs[:, 3:]) > 1e-3


def test_every_technique_runs(pairs: Any) -> None:
    every_technique(pairs[4][0])
