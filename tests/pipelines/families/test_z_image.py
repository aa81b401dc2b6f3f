"""Z-Image against diffusers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, every_technique, opened, relative
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(z_image(tmp_path_factory.mktemp("z-image")))


def z_image(folder: Path) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    tokenizer = tiny_models.qwen_tokenizer()
    net = ZImageTransformer2DModel(
        in_channels=16,
        dim=24,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
    )
    parts = {
        "transformer": tiny_models.stirred(net),
        "vae": tiny_models.vae(AutoencoderKL),
        "text_encoder": tiny_models.stirred(Qwen3Model(config)),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return tiny_models.save(folder, "ZImagePipeline", parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, Case(ask={"guidance_scale": scale - 1}))


def test_prompts_of_any_length_share_a_call(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    x = SeededNoise.batch(0, 2, model.latent_shape(64, 64))()
    prompts = ["a", "a red cube and a long tail of words that fills more than one block of the network"]
    together = model.encode(prompts, key="pos")
    assert "mask" in together.embeds
    both = model.denoise(x, 0.6, together)[0]
    for i, prompt in enumerate(prompts):
        one = model.denoise(x[i : i + 1], 0.6, model.encode([prompt], key="pos"))[0]
        torch.testing.assert_close(both.x0[i : i + 1], one.x0, rtol=1e-4, atol=1e-5)
    other = model.denoise(
        x, 0.6, replace(together, embeds={k: v.flip(0) for k, v in together.embeds.items()})
    )[0]
    assert relative(other.x0, both.x0) > 1e-3


def test_limits(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    assert model.defaults[2:4] == (8, 1.0)
    before = len("<user\n")  # one token for the mark, then one for each byte
    assert model.limits.tokens == 512 - before
    assert model.dropped("a" * model.limits.tokens + "tail") == "tail"
    assert torch.isfinite(TextToImage(model)("é" * 600, width=64, height=64, steps=1).latents).all()


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
