"""InstructPix2Pix against diffusers, with one scale and with two."""

from typing import Any

import pytest
import tiny_models
import torch
from agreement import NEGATIVE, PROMPT, SIZES, STEPS, Case, agree, every_technique, opened, relative
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.guidance.ip2p import Ip2p
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    vae = tiny_models.certain(tiny_models.vae(AutoencoderKL, channels=4, shift=None))
    return opened(
        tiny_models.stable_diffusion(
            tmp_path_factory.mktemp("pix2pix"),
            pipeline="StableDiffusionInstructPix2PixPipeline",
            gain=4,
            unet={"in_channels": 8},
            replaced={"vae": vae},
        )
    )


def picture(width: int, height: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    ask = {"image": picture(*size).repeat(count, 1, 1, 1), "image_guidance_scale": 1.0}
    agree(*pair, scale, count, size, Case(ask=ask, pictures={"image": picture(*size)}))


@pytest.mark.parametrize("count", [1, 2])
def test_two_scales(pair: tuple[Any, Any], count: int) -> None:
    model, pipe = pair
    mine = {"image": picture(96, 64)}
    ours = TextToImage(model, sampler=Ddim(), guidance=Ip2p(4.0, 1.7), pictures=mine)(
        PROMPT, negative=NEGATIVE, width=96, height=64, steps=STEPS, seed=7, count=count
    )
    want = pipe(
        prompt=[PROMPT] * count,
        negative_prompt=[NEGATIVE] * count,
        image=mine["image"].repeat(count, 1, 1, 1),
        guidance_scale=4.0,
        image_guidance_scale=1.7,
        num_inference_steps=STEPS,
        latents=SeededNoise.batch(7, count, model.latent_shape(96, 64))(),
        output_type="latent",
    ).images
    assert relative(ours.latents, want) < 1e-4
    plain = TextToImage(model, sampler=Ddim(), guidance=Cfg(4.0), pictures=mine)(
        PROMPT, negative=NEGATIVE, width=96, height=64, steps=STEPS, seed=7, count=count
    )
    assert relative(plain.latents, want) > 1e-2


def test_prompt_and_picture_matter(pair: tuple[Any, Any]) -> None:
    image = picture(64, 64)
    made = [
        TextToImage(pair[0], guidance=Cfg(1.0), pictures={"image": some})(
            prompt, width=64, height=64, steps=STEPS
        )
        for prompt, some in ((PROMPT, image), ("seven green frogs", image), (PROMPT, image.flip(-1)))
    ]
    apart = [relative(other.latents, made[0].latents) for other in made[1:]]
    assert all(gap > 0.01 for gap in apart), apart


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
