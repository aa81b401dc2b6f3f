"""Inpainting with Stable Diffusion against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import PROMPT, SIZES, STEPS, Case, agree, every_technique, opened, relative
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    vae = tiny_models.certain(tiny_models.vae(AutoencoderKL, channels=4, shift=None))
    return opened(
        tiny_models.stable_diffusion(
            tmp_path_factory.mktemp("inpaint"),
            pipeline="StableDiffusionInpaintPipeline",
            gain=4,
            unet={"in_channels": 9},
            replaced={"vae": vae},
        )
    )


def pictures(width: int, height: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "image": torch.rand(1, 3, height, width, generator=generator),
        "mask": torch.rand(1, 1, height, width, generator=generator),
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    mine = pictures(*size)
    ask = {"image": mine["image"], "mask_image": mine["mask"], "strength": 1.0}
    agree(*pair, scale, count, size, Case(ask=ask, pictures=mine))


def test_all_conditions_matter(pair: tuple[Any, Any]) -> None:
    mine = pictures(64, 64)
    cases = {
        "usual": (PROMPT, mine),
        "prompt": ("seven green frogs", mine),
        "image": (PROMPT, mine | {"image": mine["image"].flip(-1)}),
        "mask": (PROMPT, mine | {"mask": mine["mask"].flip(-1)}),
    }
    made = {
        name: TextToImage(pair[0], guidance=Cfg(1.0), pictures=some)(prompt, width=64, height=64, steps=STEPS)
        for name, (prompt, some) in cases.items()
    }
    apart = {
        name: relative(made[name].latents, made["usual"].latents) for name in ("prompt", "image", "mask")
    }
    assert all(gap > 0.01 for gap in apart.values()), apart


def test_a_picture_each(pair: tuple[Any, Any]) -> None:
    """One image with two masks is two pictures."""
    model, mine = pair[0], pictures(64, 64)
    masks = torch.cat([mine["mask"], mine["mask"].flip(-1)])
    cond = model.attach(model.encode(["a"], key="pos"), mine | {"mask": masks})
    other = model.attach(model.encode(["a"], key="pos"), mine | {"mask": masks[1:]})
    torch.testing.assert_close(cond.embeds["beside"][1:], other.embeds["beside"], rtol=1e-4, atol=1e-4)


def test_without_pictures_all_is_hole(pair: tuple[Any, Any]) -> None:
    """Text to image: the same as a picture of any colour under a whole mask."""
    model, ask = pair[0], {"width": 96, "height": 64, "steps": STEPS}
    whole = {"image": torch.zeros(1, 3, 64, 96), "mask": torch.ones(1, 1, 64, 96)}
    without = TextToImage(model)(PROMPT, **ask, count=2).latents
    assert torch.equal(without, TextToImage(model)(PROMPT, **ask, count=2).latents)
    assert relative(TextToImage(model, pictures=whole)(PROMPT, **ask, count=2).latents, without) < 1e-5


def test_refusals(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model, mine = pair[0], pictures(64, 64)
    ask = {"width": 64, "height": 64, "steps": 1}
    with pytest.raises(BadInput, match="needs the picture 'mask'"):
        TextToImage(model, pictures={"image": mine["image"]})("a", **ask)
    with pytest.raises(BadInput, match=r"mask is \[1, 1, 64, 32\]"):
        TextToImage(model, pictures=mine | {"mask": mine["mask"][..., :32]})("a", **ask)
    with pytest.raises(BadInput, match="size of the result"):
        TextToImage(model, pictures=pictures(32, 64))("a", **ask)
    plain = open_model(tiny_models.stable_diffusion(tmp_path, pipeline="StableDiffusionInpaintPipeline"))
    assert plain.accepts == () and model.accepts == ("image", "mask")


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
