"""CogVideoX against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import every_technique
from clip_agreement import RUNS, ClipCase, agree, encodes, half, hears, opened
from sfumato.pipelines.errors import BadInput
from sfumato.video.loading import open_clip_model
from sfumato.video.text_to_video import TextToVideo

WORDS = 24
CASE = ClipCase(
    frames=9,
    steps=4,  # 1000 / steps must be whole: theirs steps by that
    ask=lambda count: {"max_sequence_length": WORDS},
    pack=lambda pipe, x: x.transpose(1, 2),
    unpack=lambda pipe, x, ours: x.transpose(1, 2),
)


def cogvideox(folder: Path, kind: str) -> Path:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel

    torch.manual_seed(0)
    net = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=32,
        num_layers=2,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        patch_size_t=2 if kind == "1.5" else None,
        max_text_seq_length=WORDS,
        use_rotary_positional_embeddings=kind != "2b",
    )
    parts = {
        "transformer": tiny_models.stirred(net),
        "vae": AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.7,
        ),
        "text_encoder": tiny_models.t5(),
        "tokenizer": tiny_models.t5_tokenizer(),
        "scheduler": CogVideoXDDIMScheduler(
            clip_sample=False,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0 if kind == "2b" else 1.0,
        ),
    }
    return tiny_models.save(folder, "CogVideoXPipeline", parts)


@pytest.fixture(scope="module", params=["2b", "5b", "1.5"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(cogvideox(tmp_path_factory.mktemp("cogvideox"), request.param))


@pytest.mark.parametrize("run", RUNS)
def test_is_diffusers(pair: tuple[Any, Any], run: Any) -> None:
    agree(*pair, run, CASE)


def test_hears(pair: tuple[Any, Any]) -> None:
    hears(pair[0], CASE)


def test_encodes(pair: tuple[Any, Any]) -> None:
    encodes(pair[0], CASE)


def test_half_precision(pair: tuple[Any, Any]) -> None:
    half(pair[1], CASE)


def test_frames_are_8k_and_1(pair: tuple[Any, Any]) -> None:
    assert pair[0].lengths.every == 8
    with pytest.raises(BadInput, match="nearest: 9 or 17"):
        pair[0].at(13)


def test_no_larger_than_its_places(tmp_path: Path) -> None:
    model = open_clip_model(cogvideox(tmp_path, "1.5"))
    with pytest.raises(BadInput, match="height of 12 latent cells; this network has places for 8"):
        TextToVideo(model)("red", size=(64, 96), frames=9, steps=1)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0].at(9), "video")
