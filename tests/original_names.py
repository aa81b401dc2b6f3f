"""Tiny checkpoints of diffusers written under the names of the original ones: what the doors must undo."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
LDM = "model.diffusion_model."

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
FLUX = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_SINGLE = {
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
    "norm.linear": "modulation.lin",
}
FLUX_OUTER = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
SD3 = {
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
SD3_OUTER = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}


def weights(folder: Path, part: str) -> Tensors:
    return load_file(next((folder / part).glob("*.safetensors")))


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def save(file: Path, *groups: Tensors, metadata: dict[str, str] | None = None) -> Path:
    merged = {name: t.contiguous().clone() for group in groups for name, t in group.items()}
    save_file(merged, file, metadata=metadata)
    return file


def split(name: str) -> tuple[str, str]:
    stem, _, end = name.rpartition(".")
    return stem, end


def ldm_unet(state: Tensors, layers: int) -> Tensors:
    """Blocks counted through: `layers` resnets and one resampler per block of the way down, one more on the way up."""
    found: Tensors = {}
    for name, tensor in state.items():
        stem, end = split(name)
        if stem in UNET:
            found[f"{UNET[stem]}.{end}"] = tensor
            continue
        side, _, rest = stem.partition("_block")
        if side == "mid":
            _, kind, number, inner = rest.split(".", 3)
            place = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
        else:
            _, block, kind, number, inner = rest.split(".", 4)
            first = int(block) * (layers + 1) + int(number)
            place = f"input_blocks.{first + 1}" if side == "down" else f"output_blocks.{first}"
            if kind == "downsamplers":
                found[f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{end}"] = tensor
                continue
            if kind == "upsamplers":
                attends = any(n.startswith(f"up_blocks.{block}.attentions.") for n in state)
                found[f"output_blocks.{first + layers}.{2 if attends else 1}.conv.{end}"] = tensor
                continue
            place += ".1" if kind == "attentions" else ".0"
        found[f"{place}.{RESNET.get(inner, inner) if kind == 'resnets' else inner}.{end}"] = tensor
    return found


def ldm_vae(state: Tensors) -> Tensors:
    count = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("decoder.up_blocks."))
    found: Tensors = {}
    for name, tensor in state.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{count - 1 - int(m[1])}.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{count - 1 - int(m[1])}.upsample", new
        )
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            for old, to in VAE_ATTENTION.items():
                new = new.replace(f"mid_block.attentions.0.{old}.", f"mid.attn_1.{to}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[new] = tensor
    return found


def clip(state: Tensors) -> Tensors:
    """With the outer prefix of older libraries, and the position buffer that they kept."""
    found = {n if n.startswith("text_") else f"text_model.{n}": t for n, t in state.items()}
    length = len(found["text_model.embeddings.position_embedding.weight"])
    return found | {"text_model.embeddings.position_ids": torch.arange(length)[None]}


def open_clip(state: Tensors) -> Tensors:
    """Queries, keys and values in one tensor; one layer more than transformers keeps; a logit scale."""
    found: Tensors = {"logit_scale": torch.ones(())}
    stacks: dict[str, list[torch.Tensor]] = {}
    for name, tensor in state.items():
        inner = name.removeprefix("text_model.")
        stem, end = split(inner)
        if inner.startswith("encoder.layers."):
            number, _, rest = stem.removeprefix("encoder.layers.").partition(".")
            home = f"transformer.resblocks.{number}"
            if rest[-6:] in ("q_proj", "k_proj", "v_proj"):
                stacks.setdefault(f"{home}.attn.in_proj_{end}", [None] * 3)["qkv".index(rest[-6])] = tensor
            else:
                found[f"{home}.{OPEN_CLIP[rest]}.{end}"] = tensor
        elif inner == "text_projection.weight":
            found["text_projection"] = tensor.T
        else:
            outer = {
                "embeddings.token_embedding": f"token_embedding.{end}",
                "embeddings.position_embedding": "positional_embedding",
                "final_layer_norm": f"ln_final.{end}",
            }
            found[outer[stem]] = tensor
    found |= {name: torch.cat(stack) for name, stack in stacks.items()}
    last = max(int(n.split(".")[2]) for n in found if n.startswith("transformer.resblocks."))
    extra = {n: t for n, t in found.items() if n.startswith(f"transformer.resblocks.{last}.")}
    if "text_projection" not in found:  # Stable Diffusion 2 leaves the last layer and the projection out
        found |= {n.replace(f".{last}.", f".{last + 1}.", 1): t for n, t in extra.items()}
        found["text_projection"] = torch.ones(2, 2)
    return found


def flux(state: Tensors) -> Tensors:
    found: Tensors = {}
    stacks: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        stem, end = split(name)
        if stem in FLUX_OUTER:
            found[f"{FLUX_OUTER[stem]}.{end}"] = (
                torch.cat(tensor.chunk(2)[::-1]) if stem == "norm_out.linear" else tensor
            )
            continue
        block, number, inner = stem.split(".", 2)
        home = f"{'single' if block.startswith('single') else 'double'}_blocks.{number}"
        table = FLUX_SINGLE if "single" in block else FLUX
        if inner in table:
            found[f"{home}.{table[inner]}.{'scale' if '_norm' in table[inner] else end}"] = tensor
        elif "single" in block:
            stacks.setdefault(f"{home}.linear1.{end}", {})[inner] = tensor
        else:
            side = "txt" if ".add_" in inner else "img"
            stacks.setdefault(f"{home}.{side}_attn.qkv.{end}", {})[inner] = tensor
    order = ("q", "k", "v", "mlp")
    for name, stack in stacks.items():
        rows = sorted(stack, key=lambda inner: order.index(re.search(r"_(q|k|v|mlp)(?:_proj)?$", inner)[1]))
        found[name] = torch.cat([stack[row] for row in rows])
    return found


def sd3(state: Tensors) -> Tensors:
    found: Tensors = {}
    stacks: dict[str, dict[str, torch.Tensor]] = {}
    last = max(int(n.split(".")[1]) for n in state if n.startswith("transformer_blocks."))
    for name, tensor in state.items():
        stem, end = split(name)
        if name in SD3_OUTER or stem in SD3_OUTER:
            new = SD3_OUTER.get(name) or f"{SD3_OUTER[stem]}.{end}"
            found[new] = torch.cat(tensor.chunk(2)[::-1]) if stem == "norm_out.linear" else tensor
            continue
        _, number, inner = stem.split(".", 2)
        home = f"joint_blocks.{number}"
        if inner in SD3:
            swapped = inner == "norm1_context.linear" and int(number) == last
            found[f"{home}.{SD3[inner]}.{end}"] = torch.cat(tensor.chunk(2)[::-1]) if swapped else tensor
        else:
            side = "context_block.attn" if ".add_" in inner else f"x_block.{inner.partition('.')[0]}"
            stacks.setdefault(f"{home}.{side}.qkv.{end}", {})[inner] = tensor
    for name, stack in stacks.items():
        rows = sorted(stack, key=lambda inner: "qkv".index(re.search(r"_(q|k|v)(?:_proj)?$", inner)[1]))
        found[name] = torch.cat([stack[row] for row in rows])
    return found
