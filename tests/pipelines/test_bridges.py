"""A language model in place of a text encoder: what it says, that it fits families of every kind, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from patched import traceless
from safetensors.torch import save_file
from sfumato.pipelines.bridges import INDEX, LORAS, WEIGHTS, open_bridge, with_bridge
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage
from tiny_bridges import bridge_folder, language_model
from torch.nn.functional import gelu, layer_norm

PROMPTS = ["a red cube", "two blue cones in the snow"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bridges")


FAMILIES: dict[str, tuple[Callable[[Path], Path], int]] = {
    "sd": (lambda folder: tiny_models.stable_diffusion(folder, gain=3.0), 24),
    "pixart": (lambda folder: tiny_models.pixart(folder, "PixArtAlphaPipeline"), 32),
    "flux": (tiny_models.flux, 32),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_network_hears_the_bridge(name: str, masked: bool, tmp_path: Path) -> None:
    make, width = FAMILIES[name]
    model = open_model(make(tmp_path / "model"))
    folder = bridge_folder(tmp_path / "bridge", width, masked=masked)
    bridged = with_bridge(model, open_bridge(folder))
    tokens = tiny_models.t5_tokenizer(32)(PROMPTS, padding="max_length", return_tensors="pt")
    language = language_model()
    language.load_state_dict(open_language(folder))
    told = {"attention_mask": tokens.attention_mask} if masked else {}
    with torch.no_grad():
        states = language.model(tokens.input_ids, **told).last_hidden_state
        wanted = by_hand(states, folder)
    said, plain = bridged.encode(PROMPTS, key="pos"), model.encode(["", ""], key="pos")
    torch.testing.assert_close(said.embeds["text"], wanted)
    if masked or "mask" in plain.embeds:
        assert said.embeds["mask"].tolist() == (
            tokens.attention_mask.tolist() if masked else [[1] * 32, [1] * 32]
        )
    for other in plain.embeds.keys() - {"text", "mask"}:
        assert torch.equal(said.embeds[other], plain.embeds[other])
    assert {"language_model", "text_adapter"} <= bridged.info()["hashes"].keys()

    draw = TextToImage(bridged)
    both = draw(PROMPTS, width=64, height=64, steps=2, seed=3).latents
    for i, prompt in enumerate(PROMPTS):
        alone = draw(prompt, width=64, height=64, steps=2, seed=3 + i).latents
        assert relative(both[i : i + 1], alone) < 1e-4
    other = draw(PROMPTS[::-1], width=64, height=64, steps=2, seed=3).latents
    assert relative(both, other) > 1e-4


def open_language(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import LlamaForCausalLM

    found: dict[str, torch.Tensor] = LlamaForCausalLM.from_pretrained(folder / "language_model").state_dict()
    return found


def by_hand(states: torch.Tensor, folder: Path) -> torch.Tensor:
    """Twice: a norm, then GELU-gated features, in the names of the authors' files."""
    from safetensors.torch import load_file

    w = load_file(folder / "adapter" / WEIGHTS)
    for k in "12":
        x = layer_norm(states, states.shape[-1:], w[f"norm{k}.weight"], w[f"norm{k}.bias"])
        value, gate = (x @ w[f"ff{k}.net.0.proj.weight"].T + w[f"ff{k}.net.0.proj.bias"]).chunk(2, -1)
        states = value * gelu(gate) @ w[f"ff{k}.net.2.weight"].T + w[f"ff{k}.net.2.bias"]
    return states


def test_loras_act_in_both_networks(home: Path) -> None:
    folder = bridge_folder(home / "with-loras", 24)
    model = open_model(tiny_models.stable_diffusion(home / "sd"))
    net: Any = model.denoise.net
    name = next(n for n, _ in net.named_modules() if n.endswith("attn2.to_k"))
    before = net.get_submodule(name).weight.clone()
    down, up = torch.randn(2, 24), torch.randn(16, 2)
    inner, outer = torch.randn(2, 20), torch.randn(20, 2)
    save_file(
        {
            f"unet.{name}.lora_A.weight": down,
            f"unet.{name}.lora_B.weight": up,
            "language_model.layers.0.self_attn.q_proj.lora_A.weight": inner,
            "language_model.layers.0.self_attn.q_proj.lora_B.weight": outer,
        },
        folder / LORAS,
    )
    bridge = open_bridge(folder)
    language: Any = bridge.language.net
    query = language.layers[0].self_attn.q_proj.weight.clone()
    with_bridge(model, bridge)
    torch.testing.assert_close(net.get_submodule(name).weight, before + up @ down)
    torch.testing.assert_close(language.layers[0].self_attn.q_proj.weight, query + outer @ inner)


def test_loras_for_another_network_are_refused(home: Path) -> None:
    """As wide as the model listens, but made for another: nothing of it may stay behind."""
    folder = bridge_folder(home / "of-another", 32)
    save_file(
        {
            "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.randn(2, 8),
            "unet.mid_block.attentions.0.proj_in.lora_B.weight": torch.randn(8, 2),
            "language_model.layers.0.self_attn.q_proj.lora_A.weight": torch.randn(2, 20),
            "language_model.layers.0.self_attn.q_proj.lora_B.weight": torch.randn(20, 2),
        },
        folder / LORAS,
    )
    model, bridge = open_model(tiny_models.flux(home / "flux")), open_bridge(folder)
    with (
        traceless(model.denoise.net),
        traceless(bridge.language.net),
        pytest.raises(BadInput, match=r"changes unet\.mid_block.*, which flux does not have.* made for tiny"),
    ):
        with_bridge(model, bridge)


def test_t5_at_the_other_end(home: Path) -> None:
    folder = bridge_folder(home / "t5", 24, masked=True, language=tiny_models.t5(20))
    model = with_bridge(open_model(tiny_models.stable_diffusion(home / "for-t5")), open_bridge(folder))
    said = model.encode(PROMPTS, key="pos").embeds["text"]
    assert said.shape == (2, 32, 24) and bool(said.isfinite().all())


def broken(home: Path, name: str, change: Callable[[Path], object]) -> Path:
    if not (home / "whole").exists():
        bridge_folder(home / "whole", 24)
    folder = Path(shutil.copytree(home / "whole", home / name))
    change(folder)
    return folder


def rewrite(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "field": (lambda f: rewrite(f / INDEX, tokens=0), "tokens: Input should be greater"),
    "unknown": (lambda f: rewrite(f / INDEX, run="x"), "run: Extra inputs"),
    "class": (
        lambda f: rewrite(f / "language_model/config.json", architectures=["BertModel"]),
        "is a 'BertModel'; .* can be bridged",
    ),
    "width": (lambda f: rewrite(f / "adapter/config.json", in_dim="x"), "widths in 1..65536"),
    "shape": (lambda f: rewrite(f / "adapter/config.json", int_dim=13), r"ff1.net.2.* should be \[13"),
    "pickle": (
        lambda f: (f / "adapter" / WEIGHTS).rename(f / "adapter/diffusion_pytorch_model.bin"),
        "diffusion_pytorch_model.safetensors",
    ),
    "link": (
        lambda f: ((f / INDEX).rename(f / "x"), (f / INDEX).symlink_to("/etc/hostname")),
        "outside the model folder",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged(case: str, home: Path) -> None:
    change, said = DAMAGE[case]
    with pytest.raises((BadWeights, BadInput), match=said) as caught:
        open_bridge(broken(home, case, change))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit(home: Path) -> None:
    model = open_model(tiny_models.stable_diffusion(home / "narrow"))
    with pytest.raises(BadInput, match=r"speaks in 40 features, narrow listens in 24.* made for tiny"):
        with_bridge(model, open_bridge(bridge_folder(home / "wide", 40)))
    with pytest.raises(BadInput, match=r"'nowhere' is no folder with a bridge\.json"):
        open_bridge("nowhere")
