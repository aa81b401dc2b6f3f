"""LTX-Video against diffusers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import every_technique, relative
from clip_agreement import RUNS, ClipCase, agree, encodes, half, hears, opened
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.video.text_to_video import TextToVideo


def unpack(pipe: Any, x: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    return pipe._unpack_latents(x, *ours.shape[2:])


def seeded(count: int) -> dict[str, Any]:
    """The settings of a decoder with a time, and noise of seed 0 for each clip."""
    generators = [torch.Generator().manual_seed(0) for _ in range(count)]
    return {"decode_timestep": 0.05, "decode_noise_scale": 0.025, "generator": generators}


CASE = ClipCase(pack=lambda pipe, x: pipe._pack_latents(x), unpack=unpack, ask=seeded)


def ltx(folder: Path, timed: bool) -> Path:
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel

    torch.manual_seed(0)
    net = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=32,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        timestep_conditioning=timed,
    )
    vae.latents_mean, vae.latents_std = torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8)
    parts = {
        "transformer": tiny_models.stirred(net, 0.2),
        "vae": vae,
        "text_encoder": tiny_models.t5(),
        "tokenizer": tiny_models.t5_tokenizer(128),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
    }
    return tiny_models.save(folder, "LTXPipeline", parts)


@pytest.fixture(scope="module", params=[False, True])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(ltx(tmp_path_factory.mktemp("ltx"), request.param))


@pytest.mark.parametrize("run", RUNS)
def test_is_diffusers(pair: tuple[Any, Any], run: Any) -> None:
    agree(*pair, run, CASE)


def test_hears(pair: tuple[Any, Any]) -> None:
    hears(pair[0], CASE)


def test_encodes(pair: tuple[Any, Any]) -> None:
    encodes(pair[0], CASE)


def test_half_precision(pair: tuple[Any, Any]) -> None:
    half(pair[1], CASE)


def test_is_told_the_frame_rate(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    slow = TextToVideo(model, fps=5, guidance=Cfg(1.0))(
        "red", size=(64, 64), frames=CASE.frames, steps=2, seed=7
    )
    usual = TextToVideo(model, guidance=Cfg(1.0))("red", size=(64, 64), frames=CASE.frames, steps=2, seed=7)
    assert slow.fps == 5 and usual.fps == 25
    assert relative(slow.latents, usual.latents) > 1e-3
    agree(
        model.at(fps=25), pipe, RUNS[0], replace(CASE, ask=lambda count: {**seeded(count), "frame_rate": 25})
    )


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0].at(5), "video")
