"""Names of original checkpoints translated into those of diffusers and transformers.

UNet, VAE and SD 3 go through diffusers' own translation; that for FLUX knows one width only, so ours stands here.
Tensors are split and swapped by rows, which holds for quantised ones too: they are packed along the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

LDM = "model.diffusion_model."

FLUX_BLOCKS = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
    "modulation.lin": ("norm.linear",),
}
FLUX_OUTER = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
FLUX = {
    "double_blocks": ("transformer_blocks", FLUX_BLOCKS),
    "single_blocks": ("single_transformer_blocks", FLUX_SINGLE),
}

CLIP_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
CLIP_OUTER = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


def unet(tensors: Tensors, config: Mapping[str, Any], projects: bool) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    found: Tensors = convert_ldm_unet_checkpoint({LDM + name: t for name, t in tensors.items()}, dict(config))
    return found


def vae(tensors: Tensors, config: Mapping[str, Any], projects: bool) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    found: Tensors = convert_ldm_vae_checkpoint(dict(tensors), dict(config))
    return found


def sd3(tensors: Tensors, config: Mapping[str, Any], projects: bool) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    found: Tensors = convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    return found


def flux(tensors: Tensors, config: Mapping[str, Any], projects: bool) -> Tensors:
    """FLUX.1 of any width. What is not known keeps its name, and is reported as too much."""
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    found: Tensors = {}
    for name, tensor in tensors.items():
        stem, _, end = name.rpartition(".")
        end = "weight" if end == "scale" else end
        block, _, rest = stem.partition(".")
        number, _, inner = rest.partition(".")
        home, table = FLUX.get(block, ("", {}))
        if inner in table:
            for target, piece in zip(table[inner], _pieces(tensor, len(table[inner]), width), strict=True):
                found[f"{home}.{number}.{target}.{end}"] = piece
        elif stem in FLUX_OUTER:
            swapped = "adaLN" in stem
            found[f"{FLUX_OUTER[stem]}.{end}"] = torch.cat(tensor.chunk(2)[::-1]) if swapped else tensor
        else:
            found[name] = tensor
    return found


def _pieces(tensor: Tensor, count: int, width: int) -> list[Tensor]:
    """Queries, keys and values stacked by rows, and after them, in single blocks, the rows of the MLP."""
    if count == 1:
        return [tensor]
    if count == 3:
        return list(tensor.chunk(3))
    return list(tensor.split([width, width, width, len(tensor) - 3 * width]))


def clip(tensors: Tensors, config: Mapping[str, Any], projects: bool) -> Tensors:
    """Names of transformers already, with or without their outer prefix."""
    found = {}
    for name, tensor in tensors.items():
        if (
            name == "logit_scale"
            or name.endswith("position_ids")
            or (name.startswith("text_projection") and not projects)
        ):
            continue
        outer = name.startswith(("text_model.", "text_projection"))
        found[name if outer else f"text_model.{name}"] = tensor
    return found


def open_clip(tensors: Tensors, config: Mapping[str, Any], projects: bool) -> Tensors:
    """OpenCLIP's names; layers beyond the config's are those that Stable Diffusion 2 leaves out."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name in CLIP_OUTER:
            found[CLIP_OUTER[name]] = tensor
        elif name == "text_projection" and projects:
            found["text_projection.weight"] = tensor.T.contiguous()
        elif name.startswith("transformer.resblocks."):
            number, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
            if not number.isdecimal() or int(number) < int(config["num_hidden_layers"]):
                found.update(_open_clip_layer(f"text_model.encoder.layers.{number}", rest, tensor))
    return found


def _open_clip_layer(home: str, rest: str, tensor: Tensor) -> Tensors:
    if rest.startswith("attn.in_proj_"):
        end = rest.removeprefix("attn.in_proj_")
        return {
            f"{home}.self_attn.{w}_proj.{end}": p.contiguous()
            for w, p in zip("qkv", tensor.chunk(3), strict=True)
        }
    stem, _, end = rest.rpartition(".")
    return {f"{home}.{CLIP_LAYERS.get(stem, stem)}.{end}": tensor}


def t5(tensors: Tensors, config: Mapping[str, Any], projects: bool) -> Tensors:
    """Names of transformers already; the embedding may stand under its second name, or under both."""
    found = {n: t for n, t in tensors.items() if n != "encoder.embed_tokens.weight"}
    if "shared.weight" not in found and "encoder.embed_tokens.weight" in tensors:
        found["shared.weight"] = tensors["encoder.embed_tokens.weight"]
    return found


TRANSLATE: dict[str, Callable[[Tensors, Mapping[str, Any], bool], Tensors]] = {
    "unet": unet,
    "vae": vae,
    "sd3": sd3,
    "flux": flux,
    "clip": clip,
    "open-clip": open_clip,
    "t5": t5,
    "diffusers": lambda tensors, config, projects: tensors,
}
"""Naming to translation: (tensors, config, whether the class has a projection) -> tensors."""
