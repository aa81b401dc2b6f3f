"""LoRA factors on one network, through peft: put on, weighed, taken off, or merged into the weights.

peft replaces each layer by one of its own around the layer itself, so taking off gives back the very same modules.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.offload import offloaded
from ...kernels.quant.packed import QuantConv2d, QuantLinear
from ...kernels.quant.stored import joined
from ..errors import BadInput
from ._lora_files import Pair


class Merged(NamedTuple):
    """A layer with the weight that it had before."""

    layer: Any
    weight: nn.Parameter


def put_on(net: nn.Module, name: str, pairs: Mapping[str, Pair]) -> None:
    """Add an adapter at weight 1, in the network's own precision. `name` holds no dot."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    stuck = [module for module in pairs if isinstance(net.get_submodule(module), QuantConv2d)]
    if stuck:  # peft would make its factors of the packed layer's own class
        raise BadInput(
            "loras",
            f"loras: {stuck[0]} is a packed convolution; join the LoRA with the convert `lora` instead",
        )
    like = next(weight for weight in net.parameters() if weight.is_floating_point())
    state = {}
    for module, pair in pairs.items():
        state[f"{module}.lora_A.weight"] = pair.down.to(like).contiguous()
        state[f"{module}.lora_B.weight"] = pair.up.to(like).contiguous()
        if pair.magnitude is not None:
            state[f"{module}.lora_magnitude_vector"] = pair.magnitude.to(like)
    ranks: dict[int, list[str]] = {}
    for module, pair in pairs.items():
        ranks.setdefault(len(pair.down), []).append(re.escape(module))
    usual = max(ranks, key=lambda rank: len(ranks[rank]))
    # one pattern per rank: one per module would outgrow Python's cache of patterns and take seconds
    others = {f"^(?:{'|'.join(names)})": rank for rank, names in ranks.items() if rank != usual}
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules="|".join(name for names in ranks.values() for name in names),
        use_dora=any(pair.magnitude is not None for pair in pairs.values()),
        inference_mode=True,
    )
    with warnings.catch_warnings():  # a second adapter is what we mean
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        inject_adapter_in_model(config, net, name, low_cpu_mem_usage=True, state_dict=state)
    set_peft_model_state_dict(net, state, name, low_cpu_mem_usage=True)
    net.requires_grad_(False).eval()


def weigh(net: nn.Module, weights: Mapping[str, float]) -> None:
    """Let these adapters act, each as strongly as said; all others, and those of weight 0, do nothing."""
    from diffusers.utils import set_adapter_layers, set_weights_and_activate_adapters

    acting = {name: weight for name, weight in weights.items() if weight != 0}
    set_adapter_layers(net, enabled=bool(acting))
    if acting:
        set_weights_and_activate_adapters(net, list(acting), list(acting.values()))
    net.requires_grad_(False)


def take_off(net: nn.Module, names: Iterable[str]) -> None:
    """Remove adapters. With the last one, peft's layers go too."""
    from diffusers.utils import delete_adapter_layers

    for name in names:
        delete_adapter_layers(net, name)
        _configs(net).pop(name, None)
    if not _configs(net):
        _bare(net)


def merge(net: nn.Module, weights: Mapping[str, float]) -> list[Merged]:
    """The adapters added into the weights, and peft's layers gone. What comes back undoes it bit for bit."""
    if offloaded(net) is not None:
        raise BadInput("loras", "loras: this model's weights are offloaded; weigh them instead of merging")
    weigh(net, weights)
    layers = [layer for layer in _layers(net) if not layer.disable_adapters]
    if not all(layer.get_base_layer().weight.is_floating_point() for layer in layers):
        raise BadInput("loras", "loras: this model's weights are packed; weigh them instead of merging")
    changed = []
    with torch.no_grad():
        for layer in layers:
            acting = [name for name in layer.active_adapters if name in layer.lora_A]
            if not acting:
                continue
            base = layer.get_base_layer()
            changed.append(Merged(base, base.weight))
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            layer.merge(adapter_names=acting)
    _bare(net)
    return changed


def join_packed(net: nn.Module, pairs: Mapping[str, Pair], weight: float) -> dict[str, Pair]:
    """The factors for packed layers added to these layers' low-rank branches; what is left is for plain layers."""
    left = dict(pairs)
    for name, pair in pairs.items():
        layer = net.get_submodule(name)
        if not isinstance(layer, QuantLinear | QuantConv2d):
            continue
        if pair.magnitude is not None:
            raise BadInput(
                "loras", f"loras: {name} is packed, and DoRA rescales whole weights; merge it first"
            )
        joined(layer, pair.down.float().flatten(1), weight * pair.up.float().flatten(1))
        del left[name]
    return left


def added(weight: Tensor, pair: Pair, scale: float) -> Tensor:
    """A layer's weight with the factors added, `scale` times; float32, for the caller to round once."""
    up, down = (factor.to(weight.device, torch.float32).flatten(1) for factor in (pair.up, pair.down))
    whole = torch.addmm(weight.float().flatten(1), up, down, alpha=scale)
    if pair.magnitude is not None:  # DoRA: the rows get the lengths that the file says
        whole *= pair.magnitude.to(whole).view(-1, 1) / whole.norm(dim=1, keepdim=True)
    return whole.view(weight.shape)


def thin(layer: Any, x: Tensor, pair: Pair) -> Tensor:
    """up (down x), as the layer would take them."""
    x = x.to(pair.down.dtype)
    if pair.down.ndim == 2:
        return F.linear(F.linear(x, pair.down), pair.up)
    middle = F.conv2d(x, pair.down, None, layer.stride, layer.padding, layer.dilation)
    return F.conv2d(middle, pair.up)


def undo(changed: Iterable[Merged]) -> None:
    for layer, weight in changed:
        layer.weight = weight


def _layers(net: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in net.modules() if isinstance(module, LoraLayer)]


def _configs(net: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = vars(net).get("peft_config") or {}
    return found


def _bare(net: nn.Module) -> None:
    """The network's own layers in place of peft's around them."""
    from diffusers.utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(net)
    if "peft_config" in vars(net):
        del net.peft_config
