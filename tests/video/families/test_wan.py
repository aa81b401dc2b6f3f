"""Wan against diffusers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import every_technique, relative
from clip_agreement import RUNS, ClipCase, agree, amend, encodes, half, hears, opened, picture
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.samplers.unipc import Unipc
from sfumato.video.loading import open_clip_model
from sfumato.video.text_to_video import TextToVideo

CASE = ClipCase(sampler=Unipc(), ask=lambda count: {"max_sequence_length": 512})
CHANNELS = 4


def wan(folder: Path, pipeline: str = "WanPipeline", kind: str = "2.1") -> Path:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    pictured, tokenwise = pipeline != "WanPipeline", kind == "5b"
    viewed = pictured and kind in ("2.1", "both")

    def net() -> Any:
        made = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=2 * CHANNELS + 4 if pictured and not tokenwise else CHANNELS,
            out_channels=CHANNELS,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
            image_dim=16 if viewed else None,
            added_kv_proj_dim=24 if viewed else None,
            pos_embed_seq_len=2 * 5 if kind == "both" else None,
        )
        return tiny_models.stirred(made)

    parts = {
        "transformer": net(),
        "vae": AutoencoderKLWan(
            base_dim=4,
            z_dim=CHANNELS,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 2.0, 1.1],
        ),
        "text_encoder": UMT5EncoderModel(
            UMT5Config(vocab_size=200, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=2, pad_token_id=0)
        ),
        "tokenizer": tiny_models.t5_tokenizer(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }
    if kind == "2.2":
        parts["transformer_2"] = net()
    if viewed:
        parts |= vision()
    tiny_models.save(folder, pipeline, parts)
    return amend(folder, boundary_ratio=0.9 if kind == "2.2" else None, expand_timesteps=tokenwise)


def vision() -> dict[str, Any]:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        initializer_range=0.5,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return {"image_encoder": CLIPVisionModel(config), "image_processor": processor}


@pytest.fixture(scope="module", params=["2.1", "2.2", "5b"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(wan(tmp_path_factory.mktemp("wan"), kind=request.param))


@pytest.mark.parametrize("run", RUNS)
def test_is_diffusers(pair: tuple[Any, Any], run: Any) -> None:
    agree(*pair, run, CASE)


def test_hears(pair: tuple[Any, Any]) -> None:
    hears(pair[0], CASE)


def test_encodes(pair: tuple[Any, Any]) -> None:
    encodes(pair[0], CASE)


def test_half_precision(pair: tuple[Any, Any]) -> None:
    half(pair[1], CASE)


@pytest.mark.parametrize("kind", ["2.1", "both", "2.2", "2.2 with last", "5b"])
def test_from_pictures_is_diffusers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v

    # without ftfy, which is no dependency, theirs fails
    monkeypatch.setattr(pipeline_wan_i2v, "prompt_clean", pipeline_wan.prompt_clean)
    kind, _, last = kind.partition(" with ")
    model, pipe = opened(wan(tmp_path, "WanImageToVideoPipeline", kind))
    run = RUNS[1]
    (begin, first), (end, final) = picture(*run[2]), picture(*run[2], seed=1)
    ask, pictures = {"image": begin, "max_sequence_length": 512}, {"image": first}
    if last or kind == "both":
        ask, pictures = {**ask, "last_image": end}, {**pictures, "last": final}
    agree(model, pipe, run, replace(CASE, pictures=pictures, ask=lambda count: ask))
    for name in pictures:
        usual, changed = (
            TextToVideo(model, guidance=Cfg(1.0), pictures=shown)("", frames=5, steps=1).latents
            for shown in (pictures, {**pictures, name: 1 - pictures[name]})
        )
        assert relative(changed, usual) > 1e-4


def test_own_times_are_those_of_the_scheduler(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    pipe.scheduler.set_timesteps(7)
    ours = model.default_schedule(64, 64)(7, model.denoise.path)
    torch.testing.assert_close(torch.tensor(ours), pipe.scheduler.sigmas.float(), rtol=0, atol=1e-6)
    assert [int(1000 * t) for t in ours[:-1]] == pipe.scheduler.timesteps.tolist()


def test_flow_euler_is_diffusers(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    folder = wan(tmp_path)
    FlowMatchEulerDiscreteScheduler(shift=5.0).save_pretrained(folder / "scheduler")
    amend(folder, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    agree(*opened(folder), RUNS[1], ClipCase(ask=CASE.ask))


def test_refusals(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model = pair[0]
    with pytest.raises(BadInput, match="nearest: 5 or 9"):
        TextToVideo(model)("a", frames=6)
    with pytest.raises(BadInput, match="motion"):
        TextToVideo(model, motion=3)("a", frames=5)
    pictured = open_clip_model(wan(tmp_path, "WanImageToVideoPipeline"))
    with pytest.raises(BadInput, match="'image'"):
        TextToVideo(pictured)("a", size=(64, 64), frames=5, steps=1)
    with pytest.raises(BadInput, match="64x64, the clip 96x64"):
        TextToVideo(pictured, pictures={"image": picture(64, 64)[1]})("a", size=(96, 64), frames=5)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0].at(5), "video")
