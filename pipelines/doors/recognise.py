"""What a weights file is, from the names and shapes in its header alone.

Names are facts of the layouts in which files are shared: the original ones of each model, those of diffusers, and
those of LoRA trainers. Nothing here fails on odd names or shapes; what is not recognised is "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..weights import Tensor

Header = Mapping[str, Tensor]

NET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
"""Where the network's names begin in a checkpoint, and in a file of the network alone."""

NETWORKS = (
    ("distilled_guidance_layer.in_proj.weight", "chroma", "original"),
    ("single_stream_modulation.lin.weight", "flux2", "original"),
    ("double_blocks.0.img_attn.qkv.weight", "flux", "original"),
    ("joint_blocks.0.x_block.attn.qkv.weight", "sd3", "original"),
    ("input_blocks.0.0.weight", "unet", "original"),
    ("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight", "hunyuan-video", "original"),
    ("blocks.0.cross_attn.norm_k.weight", "wan", "original"),
    ("patchify_proj.weight", "ltx-video", "original"),
    ("double_layers.0.attn.w1q.weight", "auraflow", "original"),
    ("noise_refiner.0.attention.qkv.weight", "lumina2 or z-image", "original"),
    ("y_embedder.y_embedding", "pixart", "original"),
    ("distilled_guidance_layer.in_proj.weight", "chroma", "diffusers"),
    ("single_transformer_blocks.0.attn.to_q.weight", "flux", "diffusers"),
    ("transformer_blocks.0.attn.add_q_proj.weight", "sd3", "diffusers"),
    ("caption_projection.linear_1.weight", "pixart", "diffusers"),
    ("down_blocks.0.resnets.0.time_emb_proj.weight", "unet", "diffusers"),
)
"""A name that only this network has, the network, and whose names these are. The first that fits counts."""

ADAPTERS = (
    (".lora_down.weight", "lora", 0),
    (".lora.down.weight", "lora", 0),
    (".lora_A.weight", "lora", 0),
    (".lora_linear_layer.down.weight", "lora", 0),
    (".hada_w1_b", "loha", 0),
    (".lokr_w2_b", "lokr", 0),
    (".lokr_w1", "lokr", None),
)
"""How names of an adapter end, its kind, and the axis that is its rank."""

UNETS = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Width of the text that a UNet attends to."""
SCALES = re.compile(
    r"(\.scale_weight|\.weight_scale|\.scb|\.absmax|\.comfy_quant|\.quant_state\..*|^scaled_fp8)$"
)
"""Scales beside the weights, of formats in which a weight alone says nothing."""


class Identity(NamedTuple):
    """role: checkpoint (several parts), network, vae, text encoder, controlnet, lora, textual inversion or unknown."""

    role: str
    architecture: str | None = None
    """As sd15, sdxl, flux-dev; None if the header does not tell."""
    naming: str = "original"
    """original or diffusers."""
    parts: tuple[str, ...] = ()
    """What a checkpoint holds, or what an adapter changes."""
    channels: int | None = None
    """Channels that go into the network or come out of the VAE's encoder."""
    ranks: tuple[int, ...] = ()
    kind: str = ""
    """Of an adapter: lora, loha or lokr."""
    scaled: bool = False
    """Quantised with scales beside the weights."""


def identify(header: Header) -> Identity:
    """The role and architecture of a file."""
    scaled = any(SCALES.search(name.lower()) for name in header)
    found = _adapter(header) or _inversion(header) or _controlnet(header) or _network(header) or _lone(header)
    return (found or Identity("unknown"))._replace(scaled=scaled)


def axis(header: Header, name: str, index: int) -> int | None:
    """One axis of a tensor, if both are there."""
    shape = header[name].shape if name in header else ()
    return shape[index] if -len(shape) <= index < len(shape) else None


def prefix_of(names: Iterable[str], prefixes: Iterable[str], marker: str = "") -> str | None:
    """The first prefix under which there is the marker, or any name at all."""
    names = set(names)
    for prefix in prefixes:
        if prefix + marker in names if marker else any(name.startswith(prefix) for name in names):
            return prefix
    return None


def _network(header: Header) -> Identity | None:
    for marker, network, naming in NETWORKS:
        prefix = prefix_of(header, NET_PREFIXES, marker)
        if prefix is None:
            continue
        held = _parts(header)
        role = "checkpoint" if prefix == NET_PREFIXES[0] and held else "network"
        if network == "unet":
            architecture, channels = _unet(header, prefix, naming)
        elif network == "flux":
            architecture, channels = _flux(header, prefix, naming)
        elif network == "sd3":
            architecture, channels = _sd3(header, prefix), None
        else:
            architecture, channels = network, None
        parts = ("network", *held) if role == "checkpoint" else ()
        return Identity(role, architecture, naming, parts, channels)
    return None


def _unet(header: Header, prefix: str, naming: str) -> tuple[str | None, int | None]:
    first = "input_blocks.0.0.weight" if naming == "original" else "conv_in.weight"
    channels = axis(header, prefix + first, 1)
    width = text_width(header, prefix, "attn2.to_k.weight")
    if any(name.startswith("conditioner.embedders.0.model.") for name in header):
        return "sdxl-refiner", channels
    if any(name.startswith("conditioner.") for name in header):
        return "sdxl", channels
    if any(name.startswith("cond_stage_model.model.") for name in header):
        return "sd2", channels
    if width in UNETS:
        return UNETS[width], channels
    labelled = f"{prefix}label_emb.0.0.weight" in header or f"{prefix}add_embedding.linear_1.weight" in header
    return ("sdxl" if labelled else "sd15"), channels


def text_width(header: Header, prefix: str, end: str) -> int | None:
    """The last axis of the first tensor under a prefix whose name ends so."""
    names = (name for name in header if name.startswith(prefix) and name.endswith(end))
    name = next(names, None)
    return None if name is None else axis(header, name, -1)


def _flux(header: Header, prefix: str, naming: str) -> tuple[str, int | None]:
    guided, first = (
        ("guidance_in.in_layer.weight", "img_in.weight")
        if naming == "original"
        else ("time_text_embed.guidance_embedder.linear_1.weight", "x_embedder.weight")
    )
    architecture = "flux-dev" if prefix + guided in header else "flux-schnell"
    return architecture, axis(header, prefix + first, 1)


def _sd3(header: Header, prefix: str) -> str:
    """3 has no normed queries; 3.5 medium attends twice in some blocks, 3.5 large in none."""
    names = [name.removeprefix(prefix) for name in header if name.startswith(prefix)]
    if not any(".ln_q." in name or ".norm_q." in name for name in names):
        return "sd3"
    return "sd35-medium" if any(".attn2." in name for name in names) else "sd35-large"


def _parts(header: Header) -> tuple[str, ...]:
    """What lies beside the network in a checkpoint."""
    held = []
    if prefix_of(header, ("first_stage_model.", "vae.")) is not None:
        held.append("vae")
    if prefix_of(header, ("cond_stage_model.", "conditioner.", "text_encoders.")) is not None:
        held.append("text encoders")
    return tuple(held)


def _lone(header: Header) -> Identity | None:
    """One part alone: a VAE or a text encoder."""
    for prefix in ("first_stage_model.", "vae.", ""):
        if f"{prefix}encoder.conv_in.weight" in header and f"{prefix}decoder.conv_in.weight" in header:
            naming = (
                "diffusers"
                if f"{prefix}encoder.down_blocks.0.resnets.0.norm1.weight" in header
                else "original"
            )
            channels = axis(header, f"{prefix}decoder.conv_in.weight", 1)
            return Identity("vae", _vae(channels), naming, (), channels)
    for name, kind in (
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "clip"),
        ("encoder.layers.0.self_attn.q_proj.weight", "clip"),
        ("transformer.resblocks.0.attn.in_proj_weight", "open-clip"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "t5"),
        ("enc.blk.0.attn_q.weight", "t5"),
        ("model.layers.0.self_attn.q_proj.weight", "language model"),
        ("blk.0.attn_q.weight", "language model"),
    ):
        if any(name == found or found.endswith(f".{name}") for found in header):
            return Identity("text encoder", kind)
    return None


def _vae(channels: int | None) -> str | None:
    return {4: "sd or sdxl", 16: "sd3 or flux"}.get(channels or 0)


def _controlnet(header: Header) -> Identity | None:
    marks = (
        "controlnet_cond_embedding.conv_in.weight",
        "controlnet_blocks.0.weight",
        "controlnet_x_embedder.weight",
    )
    if not any(mark in header for mark in marks) and prefix_of(header, ("control_model.",)) is None:
        return None
    return Identity("controlnet", UNETS.get(text_width(header, "", "attn2.to_k.weight") or 0))


def _inversion(header: Header) -> Identity | None:
    """Textual inversion: a few vectors of a text encoder's width, under a name of their own."""
    if {"clip_l", "clip_g"} <= set(header) and len(header) <= 4:
        return Identity("textual inversion", "sdxl")
    if len(header) != 1:
        return None
    ((name, tensor),) = header.items()
    width = tensor.shape[-1] if len(tensor.shape) in (1, 2) else 0
    if name != "emb_params" and (width not in UNETS or "." in name):
        return None
    return Identity("textual inversion", UNETS.get(width))


def _adapter(header: Header) -> Identity | None:
    kind, ranks = "", set()
    for name in header:
        for end, found, rank in ADAPTERS:
            if name.endswith(end):
                kind = kind or found
                size = None if rank is None else axis(header, name, rank)
                ranks.update([] if size is None else [size])
                break
    if not kind:
        return None
    naming = (
        "diffusers" if any(".lora_A." in name or ".lora.down." in name for name in header) else "original"
    )
    return Identity("lora", _tuned(header), naming, _changed(header), None, tuple(sorted(ranks)), kind)


def _changed(header: Header) -> tuple[str, ...]:
    """What an adapter changes."""
    beginnings = {
        "unet": ("lora_unet_", "unet."),
        "transformer": ("lora_transformer_", "transformer.", "diffusion_model."),
        "text encoder": ("lora_te", "text_encoder"),
    }
    return tuple(part for part, starts in beginnings.items() if any(n.startswith(starts) for n in header))


def _tuned(header: Header) -> str | None:
    """The architecture that an adapter was made for."""
    names = list(header)
    if any("double_blocks_" in n or "double_blocks." in n or "single_transformer_blocks" in n for n in names):
        return "flux-dev"
    if any("joint_blocks" in n or ".add_q_proj." in n or ".add_k_proj." in n for n in names):
        return "sd3"
    if any(n.startswith(("lora_te2_", "text_encoder_2.")) for n in names):
        return "sdxl"
    for end in ("lora_down.weight", "lora_A.weight", "lora.down.weight", "hada_w1_b"):
        for mark in ("attn2_to_k", "attn2.to_k", "attn2.processor.to_k"):
            name = next((n for n in names if mark in n and n.endswith(end)), None)
            width = None if name is None else axis(header, name, -1)
            if width in UNETS:
                return UNETS[width]
    return None
