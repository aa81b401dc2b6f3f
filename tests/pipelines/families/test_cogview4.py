"""CogView4 against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, every_technique, hears, opened

PUBLISHED = {"use_dynamic_shifting": True, "base_shift": 0.25, "max_shift": 0.75, "time_shift_type": "linear"}


@pytest.fixture(scope="module", params=[PUBLISHED, {"shift": 2.0}], ids=["grows", "fixed"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(cogview4(tmp_path_factory.mktemp("cogview4"), request.param))


def cogview4(folder: Path, shift: dict[str, Any]) -> Path:
    from diffusers import AutoencoderKL, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import GlmConfig, GlmModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    glm = GlmConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
    )
    parts = {
        "transformer": CogView4Transformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=16,
            condition_dim=8,
            sample_size=8,
            rope_axes_dim=(16, 16),
        ),
        "vae": tiny_models.vae(AutoencoderKL, shift=None),
        "text_encoder": GlmModel(glm),
        "tokenizer": PreTrainedTokenizerFast(
            tokenizer_object=tiny_models.gemma_tokenizer().backend_tokenizer,
            pad_token="<pad>",
            padding_side="left",
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(**shift),
    }
    return tiny_models.save(folder, "CogView4Pipeline", parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, Case())


def test_prompt_matters(pair: tuple[Any, Any]) -> None:
    hears(pair[0])


@pytest.mark.parametrize("steps", [1, 7, 28, 50])
def test_times_are_those_of_diffusers(pair: tuple[Any, Any], steps: int) -> None:
    import numpy as np
    from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift

    model, pipe = pair
    whole = np.linspace(1000, 1.0, steps).astype(np.int64).astype(np.float32)
    pipe.scheduler.set_timesteps(
        sigmas=whole / 1000, timesteps=whole, mu=calculate_shift(4096, base_shift=0.25, max_shift=0.75)
    )
    ours = model.default_schedule(1024, 1024)(steps, model.denoise.path)
    torch.testing.assert_close(torch.tensor(ours), pipe.scheduler.sigmas)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
