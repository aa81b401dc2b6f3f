"""IP-Adapter against diffusers: plain, plus, and in the conditions that guidance mixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, opened, relative
from patched import behaves, latents, picture, sdxl
from PIL import Image
from safetensors.torch import save_file
from sfumato.pipelines.adapters import open_ip_adapter, with_style
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.patches.ip_adapter import IPAdapter
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.sites import attention_modules
from torch import Tensor

SEEN, WIDTH = 12, 16
"""Width of CLIP's vector for a picture, and of its features."""


def encoder(folder: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=16, projection_dim=SEEN,
    )  # fmt: skip
    tiny_models.stirred(CLIPVisionModelWithProjection(config)).save_pretrained(folder)
    return folder


def linear(out: int, into: int) -> Tensor:
    return torch.randn(out, into) / into**0.5


def plain(text: int) -> dict[str, Tensor]:
    weights = {"proj.weight": linear(4 * text, SEEN), "proj.bias": torch.randn(4 * text)}
    return weights | {"norm.weight": torch.ones(text), "norm.bias": torch.zeros(text)}


def plus(text: int) -> dict[str, Tensor]:
    """As published: a resampler of four layers with one head of 64."""
    weights = {"latents": torch.randn(1, 3, WIDTH), "proj_in.weight": linear(WIDTH, WIDTH)}
    weights |= {"proj_in.bias": torch.zeros(WIDTH), "proj_out.weight": linear(text, WIDTH)}
    weights |= {"proj_out.bias": torch.zeros(text)}
    weights |= {"norm_out.weight": torch.ones(text), "norm_out.bias": torch.zeros(text)}
    for i in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            weights |= {f"layers.{i}.{norm}.weight": torch.ones(WIDTH)}
            weights |= {f"layers.{i}.{norm}.bias": torch.zeros(WIDTH)}
        weights |= {
            f"layers.{i}.0.to_q.weight": linear(64, WIDTH),
            f"layers.{i}.0.to_kv.weight": linear(128, WIDTH),
        }
        weights |= {f"layers.{i}.0.to_out.weight": linear(WIDTH, 64)}
        weights |= {f"layers.{i}.1.1.weight": linear(64, WIDTH), f"layers.{i}.1.3.weight": linear(WIDTH, 64)}
    return weights


LAYOUTS = {"plain": plain, "plus": plus}


def adapter_file(net: Any, layout: str, file: Path) -> Path:
    torch.manual_seed(1)
    crossed: list[Any] = [module for name, module in attention_modules(net) if name.endswith("attn2")]
    tensors = {
        f"image_proj.{name}": value for name, value in LAYOUTS[layout](crossed[0].cross_attention_dim).items()
    }
    for i, module in enumerate(crossed):
        for part in "kv":
            tensors[f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight"] = linear(
                module.inner_dim, module.cross_attention_dim
            )
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ip")
    tiny_models.stable_diffusion(folder / "sd")
    encoder(folder / "image_encoder")
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def trio(request: Any, home: Path) -> tuple[Any, Any, Any]:
    return joined(home, "sd", request.param)


def joined(home: Path, name: str, layout: str) -> tuple[Any, Any, Any]:
    """Our model with a style, their pipeline, and our adapter."""
    from transformers import CLIPImageProcessorPil

    model, pipe = opened(home / name)
    file = adapter_file(model.denoise.net, layout, home / f"{name} {layout}.safetensors")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe.register_modules(feature_extractor=processor)  # else one that needs torchvision
    pipe.load_ip_adapter(str(home), subfolder="", weight_name=file.name)
    pipe.set_ip_adapter_scale(0.7)
    prompt = open_ip_adapter(file, home / "image_encoder")
    return with_style(model, prompt), pipe, prompt


def shown(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(trio: tuple[Any, Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    model, pipe, prompt = trio
    style = picture(1, (50, 40))
    case = Case(
        patches=(IPAdapter(prompt.weights, 0.7),),
        pictures={"style": style},
        ask={"ip_adapter_image": shown(style)},
    )
    agree(model, pipe, scale, count, size, case)


@pytest.mark.parametrize(
    ("scale", "count", "layout"), [(4.0, 1, "plain"), (4.0, 2, "plus"), (1.0, 1, "plus")]
)
def test_sdxl_is_diffusers(home: Path, scale: float, count: int, layout: str) -> None:
    if not (home / "sdxl").exists():
        sdxl(home / "sdxl")
    test_is_diffusers(joined(home, "sdxl", layout), scale, count, SIZES[1])


def test_behaves(trio: tuple[Any, Any, Any]) -> None:
    model, _, prompt = trio
    behaves(model, lambda scale: IPAdapter(prompt.weights, scale), {"style": picture(1, (32, 32))})


def test_each_image_has_its_own(trio: tuple[Any, Any, Any]) -> None:
    model, _, prompt = trio
    styles, patch = picture(2, (32, 32)), IPAdapter(prompt.weights)
    two = latents(model, patch, pictures={"style": styles}, count=2)
    each = [latents(model, patch, pictures={"style": styles[i : i + 1]}, seed=7 + i) for i in (0, 1)]
    assert relative(two, torch.cat(each)) < 1e-4
    assert relative(latents(model, patch, pictures={"style": styles[:1]}, seed=8), each[1]) > 1e-3


def test_negative_conditions_see_none(trio: tuple[Any, Any, Any]) -> None:
    model, _, _ = trio
    pictures = {"style": picture(1, (32, 32))}
    other = {"style": picture(1, (32, 32), seed=5)}
    seen = {
        key: [model.attach(model.encode(["x"], key=key), p).embeds["style"] for p in (pictures, other)]
        for key in ("pos", "neg", "neg/pag")
    }
    assert not torch.allclose(*seen["pos"], rtol=0.01) and torch.equal(*seen["neg"])
    assert torch.equal(seen["neg"][0], seen["neg/pag"][0])
    assert "style" not in model.attach(model.encode(["x"], key="pos"), {}).embeds


def test_what_is_recorded(trio: tuple[Any, Any, Any]) -> None:
    model, _, prompt = trio
    info = model.info()
    held = sum(value.numel() for group in prompt.weights.values() for value in group.values())
    assert info["parameters"]["ip_adapter"] == held and len(info["hashes"]["ip_adapter"]) == 64
    assert "image_encoder" in info["hashes"] and info["network"] == "UNet2DConditionModel"


def test_what_does_not_fit(trio: tuple[Any, Any, Any], home: Path, tmp_path: Path) -> None:
    model, _, prompt = trio
    style = {"style": picture(1, (32, 32))}
    with pytest.raises(BadInput, match="has no picture to look at"):
        latents(model, IPAdapter(prompt.weights))
    with pytest.raises(BadInput, match="has an IP-Adapter already"):
        with_style(model, prompt)
    with pytest.raises(BadInput, match="takes no picture 'style'"):
        latents(opened(home / "sd")[0], pictures=style)
    with pytest.raises(BadInput, match=r"style has the shape \[1, 1, 32, 32\]"):
        latents(model, IPAdapter(prompt.weights), pictures={"style": style["style"][:, :1]})
    layers = dict(prompt.weights["ip_adapter"])
    short = {name: value for name, value in layers.items() if not name.startswith("7.")}
    wide = layers | {"1.to_k_ip.weight": torch.zeros(16, 32)}
    for wrong, words in ((short, r"7\.to_k_ip\.weight has the shape None"), (wide, r"\(16, 32\)")):
        with pytest.raises(BadInput, match=words):
            latents(model, IPAdapter({**prompt.weights, "ip_adapter": wrong}), pictures=style)
    face = {
        "image_proj": {"proj.0.weight": torch.zeros(2), "norm.weight": torch.ones(2)},
        "ip_adapter": layers,
    }
    for weights, words in ((face, "FaceID"), ({"image_proj": {}}, "must hold")):
        with pytest.raises(ValueError, match=words):
            IPAdapter(weights)
    with pytest.raises(ValueError, match="both need the slot 'picture prompt'"):
        Pipeline(model.denoise, patches=(IPAdapter(prompt.weights), IPAdapter(prompt.weights)))
    with pytest.raises(BadWeights, match=r"only \.safetensors"):
        open_ip_adapter(tmp_path / "ip.bin", home / "image_encoder")
    save_file({"lora.up": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(BadWeights, match="belongs to no IP-Adapter"):
        open_ip_adapter(tmp_path / "lora.safetensors", home / "image_encoder")
    file = home / "sd some.safetensors"
    adapter_file(model.denoise.net, "plain", file)
    with pytest.raises(BadWeights, match="clip_vision_model is needed"):
        open_ip_adapter(file, home / "sd" / "text_encoder")
