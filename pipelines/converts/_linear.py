"""Self-attention made linear: the two small networks beside q and k, and the published files that hold them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ...kernels.attention.linear import attend
from ..errors import BadWeights, NoSite
from ..weight_writer import read_tensor, writing
from ..weights import read_json, read_tensors

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class Linear:
    """A processor: q and k each see what their own small network adds to the tokens, then linear attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError("linear attention takes no mask, and this layer is given one")
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.to_q(hidden_states + attn.to_q_(hidden_states))
        k = attn.to_k(seen + attn.to_k_(seen))
        v = attn.to_v(seen)
        q, k, v = (t.unflatten(2, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = attend(q, k, v).transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            out = layer(out)
        return out


def self_attentions(net: nn.Module) -> dict[str, Attention]:
    """The layers that become linear, by their names: those called attn1 that hear nothing but their own tokens."""
    found = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, Attention)
        and name.rpartition(".")[2] == "attn1"
        and not module.is_cross_attention
        and module.group_norm is None
    }
    if not found:
        raise NoSite(f"{type(net).__name__} has no site 'attn1': no self-attention beside one over the text")
    return found


def mount(module: Attention, middle: int | None = None) -> None:
    """Give a layer its small networks, which add nothing yet. middle None is as wide as q, -1 is none at all."""
    wide, like = module.to_q.weight.shape[0], module.to_q.weight
    for name in ("to_q_", "to_k_"):
        beside: nn.Module = nn.Identity()
        if middle != -1:
            between = middle or wide
            beside = nn.Sequential(
                nn.Linear(wide, between), nn.LayerNorm(between), nn.LeakyReLU(), nn.Linear(between, wide)
            )
            nn.init.zeros_(beside[3].weight)
            nn.init.zeros_(beside[3].bias)
        module.add_module(name, beside.to(like.device, like.dtype).requires_grad_(False))
    module.set_processor(Linear())


def load(net: nn.Module, folder: Path) -> None:
    """Mount what a folder in the published layout holds: the list of layers, and their weights under its numbers."""
    file = folder / WEIGHTS
    config, tensors = read_json(folder / CONFIG), read_tensors(file)
    layers, listed = self_attentions(net), config.get("modules_list")
    if not isinstance(listed, list):
        raise BadWeights(f"{folder / CONFIG} has no modules_list; give a folder of LinFusion's layout")
    for number, entry in enumerate(listed):
        name = entry.get("module_name") if isinstance(entry, Mapping) else None
        if name not in layers:
            raise BadWeights(
                f"{folder} is for a layer {str(name)[:80]!r}, which {type(net).__name__} has not"
            )
        module, prefix = layers[name], f"{number}."
        part = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        mount(module, entry.get("projection_mid_dim"))
        wanted = module.state_dict()
        wrong = [key for key in wanted if key not in part or part[key].shape != tuple(wanted[key].shape)]
        if wrong or len(part) != len(wanted):
            raise BadWeights(
                f"{folder}: {name} does not fit at {(wrong or sorted(set(part) - set(wanted)))[0]}"
            )
        module.load_state_dict({key: read_tensor(file, entry) for key, entry in part.items()})


def stored(net: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of the published layout."""
    listed: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, (name, module) in enumerate(self_attentions(net).items()):
        wide = module.to_q.weight.shape[0]
        listed.append({"module_name": name, "dim_n": wide, "heads": module.heads, "projection_mid_dim": None})
        tensors |= {f"{number}.{key}": t.detach().contiguous() for key, t in module.state_dict().items()}
    return {"_class_name": "LinFusion", "modules_list": listed}, tensors


def save(net: nn.Module, folder: Path) -> None:
    """Write a folder in the published layout, whole or not at all. It must not be there yet."""
    config, tensors = stored(net)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        (made / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        with writing(made / WEIGHTS, {"format": "pt"}) as writer:
            for name, tensor in tensors.items():
                writer.add(name, tensor)
        made.rename(folder)
