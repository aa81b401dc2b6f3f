"""What a file is, from names and shapes alone; and our translations against those of diffusers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from original_names import clip, flux, ldm_unet, ldm_vae, open_clip, under, weights
from sfumato.pipelines.doors.layouts import flux as our_flux
from sfumato.pipelines.doors.layouts import open_clip as our_open_clip
from sfumato.pipelines.doors.recognise import ADAPTERS, NETWORKS, identify
from sfumato.pipelines.weights import Tensor


def header(*names: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Names with a shape of their own, as `attn2__to_k=(8, 768)`, and others."""
    given = {name.replace("__", "."): shape for name, shape in shapes.items()}
    given |= {name: (4, 4) for name in names}
    return {name: Tensor("F16", shape, 0, 0) for name, shape in given.items()}


LDM = "model.diffusion_model."
UNET = f"{LDM}input_blocks.0.0.weight"
CASES = {
    "sd15": ({UNET: (320, 4, 3, 3), "cond_stage_model.transformer.x": (1,)}, "checkpoint sd15"),
    "inpainting": ({UNET: (320, 9, 3, 3), "first_stage_model.x": (1,)}, "checkpoint sd15"),
    "sd2": ({UNET: (320, 4, 3, 3), "cond_stage_model.model.x": (1,)}, "checkpoint sd2"),
    "sdxl": ({UNET: (320, 4, 3, 3), "conditioner.embedders.1.model.x": (1,)}, "checkpoint sdxl"),
    "refiner": ({UNET: (384, 4, 3, 3), "conditioner.embedders.0.model.x": (1,)}, "checkpoint sdxl-refiner"),
    "unet by width": (
        {
            "input_blocks.0.0.weight": (320, 4, 3, 3),
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
        },
        "network sdxl",
    ),
    "unet of diffusers": (
        {
            "down_blocks.0.resnets.0.time_emb_proj.weight": (1, 1),
            "conv_in.weight": (320, 4, 3, 3),
            "a.attn2.to_k.weight": (1, 768),
        },
        "network sd15",
    ),
    "schnell": (
        {"double_blocks.0.img_attn.qkv.weight": (1, 1), "img_in.weight": (3072, 64)},
        "network flux-schnell",
    ),
    "dev": (
        {
            "double_blocks.0.img_attn.qkv.weight": (1, 1),
            "img_in.weight": (3072, 64),
            "guidance_in.in_layer.weight": (1, 1),
        },
        "network flux-dev",
    ),
    "chroma": (
        {"double_blocks.0.img_attn.qkv.weight": (1, 1), "distilled_guidance_layer.in_proj.weight": (1, 1)},
        "network chroma",
    ),
    "sd3": (
        {f"{LDM}joint_blocks.0.x_block.attn.qkv.weight": (1, 1), "first_stage_model.x": (1,)},
        "checkpoint sd3",
    ),
    "sd35": (
        {"joint_blocks.0.x_block.attn.qkv.weight": (1, 1), "joint_blocks.0.x_block.attn.ln_q.weight": (1,)},
        "network sd35-large",
    ),
    "sd35 medium": (
        {
            "joint_blocks.0.x_block.attn.qkv.weight": (1, 1),
            "joint_blocks.0.x_block.attn.ln_q.weight": (1,),
            "joint_blocks.0.x_block.attn2.qkv.weight": (1, 1),
        },
        "network sd35-medium",
    ),
    "vae": ({"encoder.conv_in.weight": (1, 1), "decoder.conv_in.weight": (512, 16, 3, 3)}, "vae sd3 or flux"),
    "clip": ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (1, 1)}, "text encoder clip"),
    "t5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (1, 1)}, "text encoder t5"),
    "controlnet": (
        {"controlnet_cond_embedding.conv_in.weight": (1, 1), "x.attn2.to_k.weight": (1, 768)},
        "controlnet sd15",
    ),
    "inversion": ({"emb_params": (4, 768)}, "textual inversion sd15"),
    "inversion xl": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "textual inversion sdxl"),
    "inversion by name": ({"<cat>": (1024,)}, "textual inversion sd2"),
    "lora": (
        {"lora_unet_a_attn2_to_k.lora_down.weight": (16, 768), "lora_te_x.lora_down.weight": (16, 768)},
        "lora sd15",
    ),
    "lora xl": (
        {"lora_te2_x.lora_down.weight": (8, 1280), "lora_unet_x.lora_down.weight": (8, 4)},
        "lora sdxl",
    ),
    "lora flux": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)},
        "lora flux-dev",
    ),
    "lokr": ({"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": (4, 4)}, "lora flux-dev"),
    "nothing": ({"a": (1,)}, "unknown None"),
    "empty": ({}, "unknown None"),
}


@pytest.mark.parametrize("case", CASES)
def test_roles(case: str) -> None:
    shapes, expected = CASES[case]
    found = identify({name: Tensor("F16", shape, 0, 0) for name, shape in shapes.items()})
    assert f"{found.role} {found.architecture}" == expected
    if case == "inpainting":
        assert found.channels == 9 and found.parts == ("network", "vae")
    if case == "lora":
        assert (found.ranks, found.parts, found.kind) == ((16,), ("unet", "text encoder"), "lora")


MARKS = [f"{prefix}{name}" for name, _, _ in NETWORKS for prefix in ("", LDM)]
MARKS += [f"x{end}" for end, _, _ in ADAPTERS]
MARKS += [
    "emb_params",
    "clip_l",
    "clip_g",
    "conv_in.weight",
    "img_in.weight",
    "x_embedder.weight",
    "scaled_fp8",
]
MARKS += [
    "encoder.conv_in.weight",
    "decoder.conv_in.weight",
    "a.attn2.to_k.weight",
    "lora_unet_attn2_to_k.lora_down.weight",
]
MARKS += [
    "controlnet_cond_embedding.conv_in.weight",
    "conditioner.embedders.0.model.x",
    "first_stage_model.x",
]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(MARKS) | st.text(max_size=12), st.lists(st.integers(0, 2**62), max_size=5), max_size=6
    )
)
def test_fuzz(shapes: dict[str, list[int]]) -> None:
    """Whatever the names and shapes, there is an answer."""
    found = identify({name: Tensor("F16", tuple(shape), 0, 0) for name, shape in shapes.items()})
    assert isinstance(found.role, str)


def test_flux_names_are_those_of_diffusers() -> None:
    """Rows of the real width, one column: diffusers' own translation knows that width only."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    config = {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}
    with torch.device("meta"):
        net = FluxTransformer2DModel(**config)
    rows = {
        n: torch.arange(len(t), dtype=torch.float32) + i * 1e5
        for i, (n, t) in enumerate(net.state_dict().items())
    }
    state = {n: v[:, None] if n.endswith("weight") and "norm_" not in n else v for n, v in rows.items()}
    original = flux(state)
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    ours = our_flux(original, dict(net.config), False)
    assert set(ours) == set(theirs) == set(state)
    assert all(torch.equal(ours[n], theirs[n]) and torch.equal(ours[n], state[n]) for n in state)


def test_open_clip_names_are_those_of_diffusers(tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextModelWithProjection

    net = CLIPTextModelWithProjection(tiny_models.clip_text(24, 77).config)
    net.save_pretrained(tmp_path / "text")
    original = open_clip(weights(tmp_path, "text"))
    text = SimpleNamespace(config=net.config)
    theirs = convert_open_clip_checkpoint(text, under("cond_stage_model.model.", original))
    theirs = {
        n: t for n, t in theirs.items() if n != "text_projection.weight"
    }  # kept out for Stable Diffusion 2
    ours = our_open_clip(original, net.config.to_dict(), True)
    assert set(theirs) == set(ours) - {"text_projection.weight"}
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert torch.equal(ours["text_projection.weight"], net.text_projection.weight)
    assert "text_projection.weight" not in our_open_clip(original, net.config.to_dict(), False)


def test_the_tiny_files_are_what_they_are(tmp_path: Path) -> None:
    """The layouts of the other tests, as the header alone shows them."""
    folder = tiny_models.stable_diffusion(tmp_path / "sd")

    def roles(tensors: dict[str, torch.Tensor]) -> tuple[str, str | None]:
        found = identify({n: Tensor("F32", tuple(t.shape), 0, 0) for n, t in tensors.items()})
        return found.role, found.architecture

    unet = ldm_unet(weights(folder, "unet"), 1)
    assert roles(unet) == ("network", "sd15")
    assert roles(ldm_vae(weights(folder, "vae"))) == ("vae", "sd or sdxl")
    assert roles(weights(folder, "vae"))[0] == "vae"
    assert roles(clip(weights(folder, "text_encoder"))) == ("text encoder", "clip")
    net = tiny_models.flux(tmp_path / "flux")
    assert roles(weights(net, "transformer")) == ("network", "flux-schnell")
