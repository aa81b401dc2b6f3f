"""AnimateDiff against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import every_technique, relative
from clip_agreement import RUNS, ClipCase, agree, encodes, half, hears, opened
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.video.text_to_video import TextToVideo
from sfumato.video.wraps.windows import Windows

CASE = ClipCase()
MOST = 6


def animatediff(folder: Path, kind: str) -> Path:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        MotionAdapter,
        UNet2DConditionModel,
        UNetMotionModel,
    )

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    adapter = MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        motion_max_seq_length=MOST,
    )
    unet, adapter = tiny_models.stirred(unet), tiny_models.stirred(adapter)
    parts = {
        "unet": UNetMotionModel.from_unet2d(unet, adapter) if kind == "joined" else unet,
        "motion_adapter": adapter,
        "vae": tiny_models.vae(AutoencoderKL, channels=4, shift=None),
        "text_encoder": tiny_models.clip_text(24, 77),
        "tokenizer": tiny_models.tokenizer(77),
        "scheduler": DDIMScheduler(
            beta_schedule="linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    }
    return tiny_models.save(folder, "AnimateDiffPipeline", parts)


@pytest.fixture(scope="module", params=["beside", "joined"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(animatediff(tmp_path_factory.mktemp("animatediff"), request.param))


@pytest.mark.parametrize("run", RUNS)
def test_is_diffusers(pair: tuple[Any, Any], run: Any) -> None:
    agree(*pair, run, CASE)


def test_hears(pair: tuple[Any, Any]) -> None:
    hears(pair[0], CASE)


def test_encodes(pair: tuple[Any, Any]) -> None:
    encodes(pair[0], CASE)


def test_half_precision(pair: tuple[Any, Any]) -> None:
    half(pair[1], CASE)


def test_frames_see_each_other_and_windows_go_on(pair: tuple[Any, Any]) -> None:
    model = pair[0]
    ask = {"size": (64, 64), "steps": 1, "seed": 7}
    whole = TextToVideo(model, guidance=Cfg(1.0))("red", frames=MOST, **ask)
    parts = TextToVideo(model, guidance=Cfg(1.0), wraps=(Windows(size=2, overlap=0),))(
        "red", frames=MOST, **ask
    )
    assert relative(parts.latents, whole.latents) > 1e-3
    with pytest.raises(BadInput, match=f"count to {MOST}"):
        TextToVideo(model)("red", frames=MOST + 1, **ask)
    longer = TextToVideo(model, wraps=(Windows(size=MOST, overlap=2),))("red", frames=MOST + 3, **ask)
    assert longer.pixels.shape[2] == MOST + 3
    assert [len(clip) for clip in longer.frames] == [MOST + 3]


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0].at(5), "video")
