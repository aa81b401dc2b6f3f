"""ip-adapter: a picture as a prompt; every cross-attention layer attends to the picture beside the text.

Paper: arXiv:2308.06721, section 3.2
Shapes: weights as published, `image_proj` and `ip_adapter`: name to tensor; the conditions bring `style`, [B,N,D] or
    [B,N,L,D] of N pictures, which `with_style` makes of one
Units and ranges: scale 0..10, weight of the attention to the picture beside that to the text
Cost: 1 small attention per cross-attention layer and 1 projection of the picture per network evaluation
Neutral: scale = 0 (the network is left alone)
Errors: ValueError for a setting outside its range, or weights of a face model; BadInput for weights that do not fit
    the model's UNet, and for conditions without `style`
Differs: which conditions see the picture is theirs to say, since a network's batch mixes them: `style` of a negative
    one is that of no picture, as in diffusers. One picture prompt at a time
Tasks: image
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..sites import Layer, attention_modules, processors, swap
from ._common import check_net, check_settings

LAYOUTS = ("proj.weight", "proj.3.weight", "latents")
"""A tensor of `image_proj` that tells the layout: plain, full, plus."""


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """Gives a UNet's cross-attention layers keys and values of a picture."""

    slot: ClassVar[str] = "picture prompt"

    weights: Mapping[str, Mapping[str, Tensor]]
    """`image_proj` and `ip_adapter`, name to tensor, as `open_ip_adapter` reads them."""
    scale: float = 1.0
    """Weight of the picture, 0..10; 0 is off."""

    def __post_init__(self) -> None:
        check_settings(self.scale, 0.0, 1.0)
        if set(self.weights) != {"image_proj", "ip_adapter"}:
            raise ValueError(f"weights must hold image_proj and ip_adapter, got {', '.join(self.weights)}")
        if not any(name in self.weights["image_proj"] for name in LAYOUTS):
            raise ValueError(
                "weights must be a plain, plus or full IP-Adapter; FaceID ones are not supported"
            )

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        from diffusers import UNet2DConditionModel
        from diffusers.models.embeddings import MultiIPAdapterImageProjection

        check_net(net, UNet2DConditionModel, "ip-adapter")
        unet: Any = net
        _check_fit(self.weights["ip_adapter"], net)
        if self.scale == 0:
            yield
            return
        layers, modules = self.weights["ip_adapter"], dict(attention_modules(net))
        numbers = count(1, 2)  # published files count all attention layers, self and cross in turn
        with torch.no_grad():
            projection = unet._convert_ip_adapter_image_proj_to_diffusers(dict(self.weights["image_proj"]))
        project = (
            MultiIPAdapterImageProjection([projection]).to(unet.device, unet.dtype).requires_grad_(False)
        )
        plain = unet.process_encoder_hidden_states

        def looking(layer: Layer, old: Any) -> Any:
            if layer.kind != "cross":
                return old
            number = next(numbers)
            k, v = (layers[f"{number}.to_{part}_ip.weight"] for part in "kv")
            return _processor(modules[layer.name], k.to(unet.device, unet.dtype), v.to(k), self.scale)

        def told(encoder_hidden_states: Tensor, added_cond_kwargs: Mapping[str, Any] | None) -> Any:
            if not added_cond_kwargs or "image_embeds" not in added_cond_kwargs:
                raise BadInput(
                    "pictures",
                    "ip-adapter has no picture to look at; open the model with `with_style` and give it "
                    'pictures={"style": ...}',
                )
            text = plain(encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)
            return text, project(added_cond_kwargs["image_embeds"])

        with processors(net, looking), swap(net, "process_encoder_hidden_states", told):
            yield


def _processor(module: Any, k: Tensor, v: Tensor, scale: float) -> nn.Module:
    """diffusers' own, around these very tensors."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    with torch.device("meta"):
        made = IPAdapterAttnProcessor2_0(module.inner_dim, module.cross_attention_dim, scale=scale)
    made.load_state_dict({"to_k_ip.0.weight": k, "to_v_ip.0.weight": v}, assign=True)
    return made.requires_grad_(False)


def _check_fit(layers: Mapping[str, Tensor], net: nn.Module) -> None:
    crossed: list[Any] = [m for _, m in attention_modules(net) if vars(m).get("is_cross_attention")]
    shapes = {
        f"{2 * i + 1}.to_{part}_ip.weight": (module.inner_dim, module.cross_attention_dim)
        for i, module in enumerate(crossed)
        for part in "kv"
    }
    found = {name: tuple(tensor.shape) for name, tensor in layers.items()}
    if found != shapes:
        name = min(found.items() ^ shapes.items())[0]
        raise BadInput(
            "weights",
            f"the IP-Adapter's {name} has the shape {found.get(name)} and the model's UNet needs {shapes.get(name)}; "
            "take one that was made for this model",
        )
