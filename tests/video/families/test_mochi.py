"""Mochi against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import every_technique
from clip_agreement import RUNS, ClipCase, agree, encodes, half, hears, opened

CASE = ClipCase(frames=7, steps=4, ask=lambda count: {"max_sequence_length": 256})


def mochi(folder: Path) -> Path:
    from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiTransformer3DModel

    torch.manual_seed(0)
    net = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=24,
        text_embed_dim=32,
        time_embed_dim=16,
    )
    parts = {
        "transformer": tiny_models.stirred(net),
        "vae": AutoencoderKLMochi(
            encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4,
            layers_per_block=(1,) * 5,
            scaling_factor=0.8,
        ),
        "text_encoder": tiny_models.t5(),
        "tokenizer": tiny_models.t5_tokenizer(256),
        "scheduler": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    }
    return tiny_models.save(folder, "MochiPipeline", parts)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(mochi(tmp_path_factory.mktemp("mochi")))


@pytest.mark.parametrize("run", RUNS)
def test_is_diffusers(pair: tuple[Any, Any], run: Any) -> None:
    agree(*pair, run, CASE)


def test_hears(pair: tuple[Any, Any]) -> None:
    hears(pair[0], CASE)


def test_encodes(pair: tuple[Any, Any]) -> None:
    encodes(pair[0], CASE)


def test_half_precision(pair: tuple[Any, Any]) -> None:
    half(pair[1], CASE)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0].at(7), "video")
