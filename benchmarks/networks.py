"""Networks with random weights of real shapes, and what they are given, for benchmarks: nothing has to be fetched.

`small` gives networks of the same kinds that run in a moment anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sfumato.pipelines.doors.architectures import architecture
from torch import Tensor, nn

UNIT = 3**0.5
"""Torch draws weights that shrink what they are given by this."""
DIT = {
    "num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "patch_size": 2, "out_channels": 8,
    "in_channels": 4, "sample_size": 64, "num_embeds_ada_norm": 1000, "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
}  # fmt: skip
SMALL_UNET = {"block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32,
              "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
              "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "sd15": {**SMALL_UNET, "attention_head_dim": 2},
    "sdxl": {**SMALL_UNET, "attention_head_dim": [2, 4], "transformer_layers_per_block": [1, 2],
             "projection_class_embeddings_input_dim": 6 * 16 + 32, "addition_time_embed_dim": 16},
    "dit": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "sample_size": 8},
    "flux": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "num_single_layers": 2,
             "joint_attention_dim": 32, "pooled_projection_dim": 24, "axes_dims_rope": [4, 6, 6]},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network and a call of it."""

    title: str
    kind: str
    """Class in diffusers."""
    config: Mapping[str, Any]
    given: Callable[[], dict[str, Tensor | dict[str, Tensor]]]
    """Arguments of the call in float32 on a processor, always the same."""

    def network(self, device: str, dtype: torch.dtype) -> nn.Module:
        """Made on the device itself; the same weights each time, wide enough for its blocks to matter."""
        import diffusers

        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                net: nn.Module = getattr(diffusers, self.kind).from_config(dict(self.config))
        finally:
            torch.set_default_dtype(before)
        net = nn.Module.to(net, dtype).eval().requires_grad_(False)
        for layer in net.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.mul_(UNIT)
        return net

    def inputs(self, device: str, dtype: torch.dtype) -> dict[str, Any]:
        """On the device; numbers that are not whole in `dtype`."""

        def there(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        return {
            name: {key: there(v) for key, v in value.items()} if isinstance(value, dict) else there(value)
            for name, value in self.given().items()
        }


def cases(small: bool = False) -> dict[str, Case]:
    """A guided call of one picture, but for DiT-XL/2, where it is four pictures, and FLUX.1 dev, which needs none."""
    side = {"sd15": 64, "sdxl": 128, "dit": 64} if not small else dict.fromkeys(("sd15", "sdxl", "dit"), 8)
    configs = {name: dict(architecture(name).parts["unet"].config or {}) for name in ("sd15", "sdxl")}
    configs["dit"] = dict(DIT)
    configs["flux"] = dict(architecture("flux-dev").parts["transformer"].config or {})
    if small:
        configs = {name: {**config, **SMALL[name]} for name, config in configs.items()}
    return {
        "flux": Case("FLUX.1 dev at 1024 x 1024", "FluxTransformer2DModel", configs["flux"],
                     lambda: _flux(configs["flux"], 4 if small else 64, 7 if small else 512)),
        "sdxl": Case("The UNet of SDXL at 1024 x 1024, guided", "UNet2DConditionModel", configs["sdxl"],
                     lambda: _unet(configs["sdxl"], side["sdxl"])),
        "dit": Case("DiT-XL/2 at 512 x 512, four pictures, guided", "DiTTransformer2DModel", configs["dit"],
                    lambda: _dit(side["dit"], 2 if small else 8)),
        "sd15": Case("The UNet of SD 1.5 at 512 x 512, guided", "UNet2DConditionModel", configs["sd15"],
                     lambda: _unet(configs["sd15"], side["sd15"])),
    }  # fmt: skip


def _unet(config: Mapping[str, Any], side: int) -> dict[str, Tensor | dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    found: dict[str, Tensor | dict[str, Tensor]] = {
        "sample": torch.randn(2, 4, side, side, generator=rng),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 77, config["cross_attention_dim"], generator=rng),
    }
    if config.get("addition_time_embed_dim"):
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        ids = torch.tensor([[8.0 * side, 8.0 * side, 0.0, 0.0, 8.0 * side, 8.0 * side]] * 2)
        found["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, generator=rng),
            "time_ids": ids,
        }
    return found


def _dit(side: int, batch: int) -> dict[str, Tensor | dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, side, side, generator=rng),
        "timestep": torch.full((batch,), 500),
        "class_labels": torch.arange(batch),
    }


def _flux(config: Mapping[str, Any], side: int, length: int) -> dict[str, Tensor | dict[str, Tensor]]:
    """`side` in tokens."""
    rng = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], 2).reshape(-1, 3).float()
    return {
        "hidden_states": torch.randn(1, side * side, config["in_channels"], generator=rng),
        "encoder_hidden_states": torch.randn(1, length, config["joint_attention_dim"], generator=rng),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"], generator=rng),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": places,
        "txt_ids": torch.zeros(length, 3),
    }
