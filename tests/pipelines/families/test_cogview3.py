"""CogView3-Plus against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import PROMPT, SIZES, Case, agree, every_technique, hears, opened, relative
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(cogview3(tmp_path_factory.mktemp("cogview3")))


def cogview3(folder: Path) -> Path:
    """999 training steps, because those of DDIM in diffusers meet its times only where they divide evenly."""
    from diffusers import AutoencoderKL, CogVideoXDDIMScheduler, CogView3PlusTransformer2DModel

    torch.manual_seed(0)
    parts = {
        "transformer": CogView3PlusTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=16,
            sample_size=8,
        ),
        "vae": tiny_models.vae(AutoencoderKL, shift=None),
        "text_encoder": tiny_models.t5(),
        "tokenizer": tiny_models.t5_tokenizer(),
        "scheduler": CogVideoXDDIMScheduler(
            num_train_timesteps=999,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=4.0,
            timestep_spacing="trailing",
        ),
    }
    return tiny_models.save(folder, "CogView3PlusPipeline", parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, Case())


def test_prompt_matters(pair: tuple[Any, Any]) -> None:
    hears(pair[0])


def test_nothing_to_avoid(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    noise = SeededNoise.batch(7, 1, model.latent_shape(64, 64))()
    ask = {
        "width": 64,
        "height": 64,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "output_type": "latent",
    }
    ours = TextToImage(model, guidance=Cfg(5.0))(PROMPT, width=64, height=64, steps=3, seed=7).latents
    assert relative(ours, pipe(PROMPT, latents=noise, **ask).images) < 1e-4


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
