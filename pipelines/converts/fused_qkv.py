"""fused-qkv: the projections of a layer's queries, keys and values as one product, or two where keys see the text.

Paper: none, because it is the same sum in fewer calls: https://pytorch.org/blog/accelerating-generative-ai-3
Shapes: attention layers of Stable Diffusion 1, 2 and XL, DiT, PixArt and FLUX; others stay as they are
Units and ranges: none
Cost: none; fewer and wider products, which keep a GPU busier
Neutral: a network without such layers stays as it is
Errors: none
Differs: diffusers keeps the single projections beside; here they are gone, so memory stays what it was, and techniques
    and LoRAs that look for them find none
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

OWN, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


@dataclass(frozen=True)
class FusedQkv:
    slot: ClassVar[str] = "projections"

    def __call__(self, net: nn.Module) -> nn.Module:
        from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
        from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor

        for module in net.modules():
            if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
                if _fused(module):
                    module.set_processor(FusedAttnProcessor2_0())
            elif isinstance(module, FluxAttention) and type(module.processor) is FluxAttnProcessor:
                module.fused_projections = _fused(module) or module.fused_projections
        return net


def _fused(module: Any) -> bool:
    """Whether its projections could be joined: linear layers all, of the same input in each group."""
    cross = bool(vars(module).get("is_cross_attention"))
    groups: dict[str, tuple[str, ...]] = {"to_kv": OWN[1:]} if cross else {"to_qkv": OWN}
    if module._modules.get(ADDED[0]) is not None:
        groups["to_added_qkv"] = ADDED
    found = {name: [module._modules.get(part) for part in parts] for name, parts in groups.items()}
    if not all(_alike(layers) for layers in found.values()):
        return False
    for name, layers in found.items():
        module.add_module(name, _joined(layers))
        for part in groups[name]:
            delattr(module, part)
    return True


def _alike(layers: list[Any]) -> bool:
    plain = all(type(layer) is nn.Linear for layer in layers)
    return (
        plain and len({(layer.in_features, layer.out_features, layer.bias is None) for layer in layers}) == 1
    )


def _joined(layers: list[Any]) -> nn.Linear:
    made = nn.Linear(1, 1, bias=layers[0].bias is not None, device="meta")
    made.in_features, made.out_features = layers[0].in_features, sum(layer.out_features for layer in layers)
    made.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
    if made.bias is not None:
        made.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)
    return made
