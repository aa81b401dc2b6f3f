"""Stable Video Diffusion against diffusers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import every_technique, relative
from clip_agreement import RUNS, ClipCase, agree, encodes, half, opened, picture
from sfumato.video.guidance.frame_cfg import FrameCfg
from sfumato.video.text_to_video import TextToVideo

CASE = ClipCase(
    frames=3,
    guidance="max_guidance_scale",
    guide=lambda scale: FrameCfg(1.0, scale),
    prompts=False,
    pack=lambda pipe, x: x.transpose(1, 2),
    unpack=lambda pipe, x, ours: x.transpose(1, 2),
)


def svd(folder: Path) -> Path:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(
            64,
            64,
        ),  # its 32 groups must hold more than one channel, else norms undo the time
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=2,
        num_frames=3,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        projection_dim=16,
        initializer_range=0.5,
    )
    parts = {
        "unet": tiny_models.stirred(unet, 0.2),
        "vae": AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4
        ),
        "image_encoder": CLIPVisionModelWithProjection(vision),
        "feature_extractor": CLIPImageProcessorPil(),
        "scheduler": EulerDiscreteScheduler(
            prediction_type="v_prediction",
            timestep_type="continuous",
            timestep_spacing="leading",
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            sigma_min=0.002,
            sigma_max=700.0,
            use_karras_sigmas=True,
            steps_offset=1,
        ),
    }
    return tiny_models.save(folder, "StableVideoDiffusionPipeline", parts)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(svd(tmp_path_factory.mktemp("svd")))


@pytest.mark.parametrize("run", RUNS)
def test_is_diffusers(pair: tuple[Any, Any], run: Any) -> None:
    begin, first = picture(*run[2])

    def ask(count: int) -> dict[str, Any]:
        return {
            "image": [begin] * count,
            "generator": [torch.Generator().manual_seed(0) for _ in range(count)],
        }

    agree(*pair, run, replace(CASE, pictures={"image": first}, ask=ask))


def test_encodes(pair: tuple[Any, Any]) -> None:
    encodes(pair[0], CASE)


def test_half_precision(pair: tuple[Any, Any]) -> None:
    half(pair[1], replace(CASE, pictures={"image": picture(64, 64)[1]}))


def test_what_it_is_told_matters(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    first, other = (picture(64, 64, seed)[1] for seed in (0, 1))

    def made(image: torch.Tensor, **told: float) -> torch.Tensor:
        return TextToVideo(model, pictures={"image": image}, **told)("", steps=2, seed=7).latents

    usual = made(first)
    assert usual.shape == (1, 4, 3, 8, 8)
    assert torch.equal(made(first, fps=7, motion=127), usual)
    changed = {"picture": made(other), "fps": made(first, fps=20), "motion": made(first, motion=10)}
    assert all(relative(latents, usual) > 1e-3 for latents in changed.values()), changed


def test_its_own_guidance_grows_along_the_clip(pair: tuple[Any, Any]) -> None:
    assert pair[0].guide == FrameCfg(1.0, 3.0)
    found = TextToVideo(pair[0], pictures={"image": picture(64, 64)[1]})("a red cube", steps=1)
    assert found.dropped == ("a red cube",)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0].at(5), "video")
