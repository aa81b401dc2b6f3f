"""AuraFlow against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import PROMPT, SIZES, Case, agree, every_technique, hears, opened
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(auraflow(tmp_path_factory.mktemp("auraflow")))


def auraflow(folder: Path) -> Path:
    from diffusers import AuraFlowTransformer2DModel, AutoencoderKL, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    parts = {
        "transformer": tiny_models.stirred(
            AuraFlowTransformer2DModel(
                sample_size=8,
                in_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                caption_projection_dim=32,
                pos_embed_max_size=64,
            ),
            0.3,
        ),
        "vae": tiny_models.vae(AutoencoderKL, channels=4, shift=None),
        "text_encoder": UMT5EncoderModel(
            UMT5Config(vocab_size=200, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=2, pad_token_id=0)
        ),
        "tokenizer": tiny_models.t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.73),
    }
    return tiny_models.save(folder, "AuraFlowPipeline", parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, Case())


def test_prompt_matters(pair: tuple[Any, Any]) -> None:
    hears(pair[0])


def test_positions_end(pair: tuple[Any, Any]) -> None:
    assert pair[0].defaults.width == 128
    with pytest.raises(BadInput, match="128"):
        TextToImage(pair[0])(PROMPT, width=144, height=64, steps=1)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
