"""HunyuanVideo against diffusers."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import NEGATIVE, PROMPT, every_technique, relative
from clip_agreement import RUNS, ClipCase, agree, encodes, half, hears, opened
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.video.text_to_video import TextToVideo

CASE = ClipCase(guidance="true_cfg_scale", distilled=4.0, ask=lambda count: {"guidance_scale": 4.0})


def words() -> Any:
    """A word is a token, so that the prompt stands behind the 95 that the template is cut by."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    text = f"{DEFAULT_PROMPT_TEMPLATE['template']} {PROMPT} {NEGATIVE} seven green frogs"
    names = ["<pad>", "<unk>", *sorted(set(re.findall(r"\w+|[^\w\s]+", text)))]
    plain = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>")


def hunyuan_video(folder: Path) -> Path:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    tokenizer = words()
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
    )
    net = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=24,
        rope_axes_dim=(4, 6, 6),
    )
    parts = {
        "transformer": tiny_models.stirred(net),
        "vae": AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
        ),
        "text_encoder": LlamaModel(llama),
        "tokenizer": tokenizer,
        "text_encoder_2": tiny_models.clip_text(24, 77),
        "tokenizer_2": tiny_models.tokenizer(77),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }
    return tiny_models.save(folder, "HunyuanVideoPipeline", parts)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(hunyuan_video(tmp_path_factory.mktemp("hunyuan_video")))


@pytest.mark.parametrize("run", RUNS)
def test_is_diffusers(pair: tuple[Any, Any], run: Any) -> None:
    agree(*pair, run, CASE)


def test_hears(pair: tuple[Any, Any]) -> None:
    hears(pair[0], CASE)


def test_encodes(pair: tuple[Any, Any]) -> None:
    encodes(pair[0], CASE)


def test_half_precision(pair: tuple[Any, Any]) -> None:
    half(pair[1], CASE)


def test_is_told_the_guidance(pair: tuple[Any, Any]) -> None:
    ask = {"size": (64, 64), "frames": 5, "steps": 1, "seed": 7}
    usual = TextToVideo(pair[0])("red", **ask).latents
    assert torch.equal(TextToVideo(pair[0], distilled=6.0)("red", **ask).latents, usual)
    assert torch.equal(TextToVideo(pair[0], guidance=Cfg(1.0))("red", **ask).latents, usual)
    assert relative(TextToVideo(pair[0], distilled=1.0)("red", **ask).latents, usual) > 1e-3


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0].at(5), "video")
