"""Kandinsky 3 against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import PROMPT, Case, agree, every_technique, hears, opened, relative
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage

SIZES = ((64, 64), (128, 64))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(kandinsky3(tmp_path_factory.mktemp("kandinsky3")))


def kandinsky3(folder: Path) -> Path:
    from diffusers import DDIMScheduler, Kandinsky3UNet, VQModel

    torch.manual_seed(0)
    parts = {
        "unet": Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=16,
            groups=2,
            attention_head_dim=4,
            layers_per_block=2,
            block_out_channels=(16, 32),
            cross_attention_dim=16,
            encoder_hid_dim=32,
        ),
        "movq": VQModel(
            latent_channels=4,
            block_out_channels=(32, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            num_vq_embeddings=8,
            norm_type="spatial",
        ),
        "text_encoder": tiny_models.t5(),
        "tokenizer": tiny_models.t5_tokenizer(),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    }
    return tiny_models.save(folder, "Kandinsky3Pipeline", parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    """The pipeline's scale is 1 less, and up to 1 it does not guide at all."""
    theirs = scale - 1 if scale > 1 else 1.0
    agree(*pair, scale, count, size, Case(ask={"guidance_scale": theirs}))


def test_prompt_matters(pair: tuple[Any, Any]) -> None:
    hears(pair[0])


def test_nothing_to_avoid(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    noise = SeededNoise.batch(7, 1, model.latent_shape(64, 64))()
    ask = {
        "width": 64,
        "height": 64,
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }
    theirs = pipe(PROMPT, latents=noise, **ask).images
    ours = TextToImage(model, sampler=Ddim(), guidance=Cfg(5.0))(PROMPT, width=64, height=64, steps=3, seed=7)
    assert relative(ours.latents, theirs) < 1e-4


def test_codec(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    pictures = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        expected = pipe.movq.encode(pictures * 2 - 1).latents
    torch.testing.assert_close(model.encode_image(pictures), expected)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
