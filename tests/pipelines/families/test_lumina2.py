"""Lumina-Image 2.0 against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import PROMPT, SIZES, Case, agree, every_technique, hears, opened

CASE = Case(ask={"cfg_normalization": False})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(lumina2(tmp_path_factory.mktemp("lumina2")))


def lumina2(folder: Path) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel

    torch.manual_seed(0)
    parts = {
        "transformer": Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=16,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(300, 32, 32),
            cap_feat_dim=32,
        ),
        "vae": tiny_models.vae(AutoencoderKL),
        "text_encoder": tiny_models.gemma(),
        "tokenizer": tiny_models.gemma_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }
    return tiny_models.save(folder, "Lumina2Pipeline", parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, CASE)


def test_prompt_matters(pair: tuple[Any, Any]) -> None:
    hears(pair[0])


def test_system_prompt_takes_room(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    room = model.limits.tokens - 1  # without the token that begins every text
    kept = pipe.tokenizer(pipe.system_prompt + " <Prompt Start> " + "b" * room).input_ids
    assert len(kept) == 256
    assert model.dropped("b" * room) == ""
    assert model.dropped("b" * room + "rd") == "rd"
    assert model.dropped(PROMPT) == ""


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
