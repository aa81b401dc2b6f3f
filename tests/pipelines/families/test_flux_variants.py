"""FLUX.1 Fill, control and Kontext against diffusers."""

from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, every_technique, opened, relative
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage

CHANNELS = {"FluxFillPipeline": 64 + 64 + 256, "FluxControlPipeline": 64 + 64, "FluxKontextPipeline": 64}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    found = {}
    for name, channels in CHANNELS.items():
        folder = tmp_path_factory.mktemp(name)
        tiny_models.flux(folder, guidance_embeds=True, dynamic_shift=True, pipeline=name, channels=channels)
        found[name] = opened(folder)
        out = found[name][1].vae.encoder.conv_out
        with torch.no_grad():  # diffusers draws from the posterior; make it as narrow as its mean
            out.weight[16:] = 0
            out.bias[16:] = -30
    return found


def picture(size: tuple[int, int], channels: int = 3, seed: int = 3) -> torch.Tensor:
    width, height = size
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def case(guidance: str, embedded: float, pictures: dict[str, torch.Tensor], **ask: Any) -> Case:
    return Case(
        guidance=guidance,
        negative=guidance != "guidance_scale",
        pictures=pictures,
        ask={"guidance_scale": embedded, "max_sequence_length": tiny_models.WORDS, **ask},
        pack=lambda pipe, x: pipe._pack_latents(x, *x.shape),
        unpack=lambda pipe, x, width, height: pipe._unpack_latents(x, height, width, 8),
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
def test_fill_is_diffusers(pairs: dict, count: int, size: tuple[int, int]) -> None:
    shown = {"image": picture(size), "mask": picture(size, 1, 4)}
    asked = case("guidance_scale", 30.0, shown, image=shown["image"], mask_image=shown["mask"])
    agree(*pairs["FluxFillPipeline"], 1.0, count, size, asked)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
def test_control_is_diffusers(pairs: dict, count: int, size: tuple[int, int]) -> None:
    shown = {"control": picture(size)}
    # a tensor is taken as it is, in -1..1
    asked = case("guidance_scale", 30.0, shown, control_image=shown["control"] * 2 - 1)
    agree(*pairs["FluxControlPipeline"], 1.0, count, size, asked)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("shown", [{}, {"image": picture((48, 80))}], ids=["alone", "edit"])
def test_kontext_is_diffusers(
    pairs: dict, shown: dict, scale: float, count: int, size: tuple[int, int]
) -> None:
    asked = case("true_cfg_scale", 2.5, shown, max_area=size[0] * size[1], _auto_resize=False, **shown)
    agree(*pairs["FluxKontextPipeline"], scale, count, size, asked)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("FluxFillPipeline", ("image", "mask")),
        ("FluxControlPipeline", ("control",)),
        ("FluxKontextPipeline", ("image",)),
    ],
)
def test_every_picture_counts(pairs: dict, name: str, shown: tuple[str, ...]) -> None:
    model, size = pairs[name][0], (64, 64)
    channels = {"mask": 1}
    first = {key: picture(size, channels.get(key, 3), 5) for key in shown}

    def draw(pictures: dict[str, torch.Tensor], prompt: str = "a") -> torch.Tensor:
        return TextToImage(model, pictures=pictures)(prompt, width=64, height=64, steps=1).latents

    usual = draw(first)
    assert relative(draw(first, "two cubes"), usual) > 1e-3
    for key in shown:
        other = {**first, key: picture(size, channels.get(key, 3), 6)}
        assert relative(draw(other), usual) > 1e-3


def test_what_cannot_be(pairs: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    fill, kontext = pairs["FluxFillPipeline"][0], pairs["FluxKontextPipeline"][0]
    ask = {"width": 64, "height": 64, "steps": 1}
    with pytest.raises(BadInput, match="needs the picture 'image'"):
        TextToImage(fill)("a", **ask)
    with pytest.raises(BadInput, match="does not fit image"):
        TextToImage(fill, pictures={"image": picture((64, 64)), "mask": picture((64, 64))})("a", **ask)
    with pytest.raises(BadInput, match="size of the result"):
        TextToImage(fill, pictures={"image": picture((32, 64)), "mask": picture((32, 64), 1)})("a", **ask)
    with pytest.raises(BadInput, match="multiple of 16"):
        TextToImage(kontext, pictures={"image": picture((56, 64))})("a", **ask)
    folder = tiny_models.flux(tmp_path_factory.mktemp("wrong"), pipeline="FluxFillPipeline", channels=128)
    with pytest.raises(BadWeights, match="names the wrong pipeline"):
        open_model(folder)


def test_every_technique_runs(pairs: Any) -> None:
    every_technique(pairs["FluxFillPipeline"][0])
