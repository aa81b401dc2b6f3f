"""PixArt against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, every_technique, opened

CASE = Case(ask={"use_resolution_binning": False, "clean_caption": False})


@pytest.fixture(scope="module", params=["PixArtSigmaPipeline", "PixArtAlphaPipeline"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(pixart(tmp_path_factory.mktemp("pixart"), request.param))


def pixart(folder: Path, pipeline: str) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, PixArtTransformer2DModel

    torch.manual_seed(0)
    parts = {
        "transformer": PixArtTransformer2DModel(
            sample_size=128 if pipeline == "PixArtAlphaPipeline" else 8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=12,
            num_attention_heads=2,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
        ),
        "vae": tiny_models.vae(AutoencoderKL, channels=4, shift=None),
        "text_encoder": tiny_models.t5(),
        "tokenizer": tiny_models.t5_tokenizer(),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    }
    return tiny_models.save(folder, pipeline, parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, CASE)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
