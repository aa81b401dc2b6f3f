"""Stable Diffusion 3's control networks against diffusers: InstantX's kind, and that of SD 3.5 Large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, opened
from patched import behaves, latents, picture, saved
from sfumato.pipelines.adapters import control_latents, open_control
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.patches.sd3_controlnet import Sd3ControlNet

SHAPE = {
    "sample_size": 8, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 56,
    "pos_embed_max_size": 16,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "instantx": {"num_layers": 2},
    "large": {
        "num_layers": 1,
        "joint_attention_dim": None,
        "use_pos_embed": False,
        "force_zeros_for_pooled_projection": False,
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd3")
    parts = {
        "transformer": tiny_models.stirred(SD3Transformer2DModel(num_layers=3, **SHAPE)),
        "vae": tiny_models.vae(AutoencoderKL),
        "text_encoder": clip(24),
        "text_encoder_2": clip(32),
        "text_encoder_3": tiny_models.t5(32),
        "tokenizer": tiny_models.tokenizer(77),
        "tokenizer_2": tiny_models.tokenizer(77),
        "tokenizer_3": tiny_models.t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    tiny_models.save(folder / "sd3", "StableDiffusion3Pipeline", parts)
    return folder


def clip(width: int) -> torch.nn.Module:
    """Both together are as wide as T5, so they are half as wide each as their vectors say."""
    from transformers import CLIPTextModelWithProjection

    config = tiny_models.clip_text(16, 77).config
    config.projection_dim = width
    return CLIPTextModelWithProjection(config)


@pytest.fixture(scope="module", params=KINDS)
def trio(request: Any, home: Path) -> tuple[Any, Any, Any]:
    """Our model, their pipeline, and our control network."""
    from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline

    model, plain = opened(home / "sd3")
    torch.manual_seed(2)
    folder = saved(SD3ControlNetModel(**{**SHAPE, **KINDS[request.param]}), home / request.param)
    pipe = StableDiffusion3ControlNetPipeline(
        **plain.components, controlnet=SD3ControlNetModel.from_pretrained(folder)
    )
    pipe.set_progress_bar_config(disable=True)
    last = pipe.vae.encoder.conv_out  # its posterior loses its width, and the sample is the mean
    with torch.no_grad():
        last.weight[16:] = 0
        last.bias[16:] = -30
    return model, pipe, open_control(folder)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(trio: tuple[Any, Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    model, pipe, control = trio
    image = picture(count, size)
    patch = Sd3ControlNet(control, control_latents(model, control, image), 0.8)
    case = Case(patches=(patch,), ask={"control_image": image * 2 - 1, "controlnet_conditioning_scale": 0.8})
    agree(model, pipe, scale, count, size, case)


def test_behaves(trio: tuple[Any, Any, Any]) -> None:
    model, _, control = trio
    before = vars(control).keys(), list(control._modules)
    found = control_latents(model, control, picture(1, (64, 64)))
    behaves(model, lambda scale: Sd3ControlNet(control, found, scale))
    assert (vars(control).keys(), list(control._modules)) == before


def test_two_add_up(trio: tuple[Any, Any, Any], home: Path) -> None:
    """Of different depth, in either order."""
    from diffusers import SD3ControlNetModel

    model, _, control = trio
    second = open_control(saved(SD3ControlNetModel(**{**SHAPE, "num_layers": 3}), home / "three"))
    one, two = (
        Sd3ControlNet(net, control_latents(model, net, picture(1, (64, 64)))) for net in (control, second)
    )
    both = latents(model, one, two)
    torch.testing.assert_close(latents(model, two, one), both)
    assert not torch.allclose(both, latents(model, one), rtol=1e-2)


def test_what_does_not_fit(trio: tuple[Any, Any, Any]) -> None:
    from diffusers import SD3ControlNetModel

    model, _, control = trio
    found = control_latents(model, control, picture(1, (64, 64)))

    def other(**changes: Any) -> Any:
        return SD3ControlNetModel(**{**SHAPE, "num_layers": 1, **changes}).eval()

    for patch, words in (
        (Sd3ControlNet(other(pooled_projection_dim=20), found), "pooled_projection_dim = 20"),
        (Sd3ControlNet(other(extra_conditioning_channels=1), found), "takes a mask"),
        (Sd3ControlNet(model.codec.vae, found), "no SD3ControlNetModel"),
        (Sd3ControlNet(control, found[..., :4]), r"are \[16, 8, 4\], the result's \[16, 8, 8\]"),
    ):
        with pytest.raises(BadInput, match=words):
            latents(model, patch)
