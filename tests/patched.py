"""What tests of patches share: pictures, runs, and the proof that a patch can be off, felt, repeated and gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.protocols import Model, Patch
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor, nn


def picture(count: int, size: tuple[int, int], channels: int = 3, seed: int = 3) -> Tensor:
    """[count,channels,H,W] of a size (width, height), in whole steps of 1/255."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size[1], size[0]), generator=gen) / 255


def latents(
    model: Model, *patches: Patch, pictures: Mapping[str, Tensor] | None = None, seed: int = 7, count: int = 1
) -> Tensor:
    make = TextToImage(model, guidance=Cfg(4.0), patches=patches, pictures=pictures or {})
    return make("a red cube", negative="blurry", width=64, height=64, steps=2, seed=seed, count=count).latents


def saved(net: Any, folder: Path) -> Path:
    """The folder of an adapter in which nothing is zero."""
    tiny_models.stirred(net).save_pretrained(folder)
    return folder


def sdxl(folder: Path) -> Path:
    """A StableDiffusionXLPipeline folder; its text is 48 wide."""
    from transformers import CLIPTextModelWithProjection

    second = tiny_models.clip_text(24, 77).config
    second.projection_dim = 20
    return tiny_models.stable_diffusion(
        folder,
        pipeline="StableDiffusionXLPipeline",
        unet={
            "cross_attention_dim": 48,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 20 + 4 * 6,
            "use_linear_projection": True,
        },
        replaced={
            "text_encoder_2": CLIPTextModelWithProjection(second),
            "tokenizer_2": tiny_models.tokenizer(77),
        },
    )


def trace(net: nn.Module) -> Any:
    """Everything that a patch might leave behind."""
    parts = [
        (name, id(module), {key: id(value) for key, value in vars(module).items()}, list(module._modules))
        for name, module in net.named_modules()
    ]
    return parts, {key: id(value) for key, value in vars(net.config).items()}


@contextmanager
def traceless(net: nn.Module) -> Iterator[None]:
    before, weights = trace(net), {name: weight.clone() for name, weight in net.state_dict().items()}
    yield
    assert trace(net) == before
    after = net.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())


def behaves(
    model: Model,
    make: Callable[[float], Patch],
    pictures: Mapping[str, Tensor] | None = None,
    floor: float = 1e-2,
) -> None:
    """`make(scale)` is bit-exactly off at 0, felt at 1, the same twice and for two images at once, and then gone."""
    net, plain, patch = model.denoise.net, latents(model), make(1.0)
    with traceless(net):
        assert torch.equal(latents(model, make(0.0), pictures=pictures), plain)
        felt = latents(model, patch, pictures=pictures)
        assert relative(felt, plain) > floor
        assert torch.equal(latents(model, patch, pictures=pictures), felt)
        two = latents(model, patch, pictures=pictures, count=2)
        next_one = latents(model, patch, pictures=pictures, seed=8)
        assert relative(two, torch.cat([felt, next_one])) < 1e-4

        with pytest.raises(ZeroDivisionError), patch(net):
            raise ZeroDivisionError
        with broken(net), pytest.raises(ZeroDivisionError):
            latents(model, patch, pictures=pictures)
    assert torch.equal(latents(model), plain)


@contextmanager
def broken(net: nn.Module) -> Iterator[None]:
    """The network fails in the midst of its evaluation."""

    def fail(module: nn.Module, inputs: Any) -> None:
        raise ZeroDivisionError

    last = list(net.children())[-1]
    handle = last.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()
