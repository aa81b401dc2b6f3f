"""Tiny UNets as denoisers: the layouts of Stable Diffusion, SDXL, Kandinsky 2.2 and one without attention outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sfumato.pipelines.families._denoiser import NetDenoiser
from sfumato.pipelines.protocols import Cond, Conds
from tiny_models import stirred
from tiny_nets import VP, Tiny
from torch import Tensor

WIDTH = 24
COMMON = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 8,
    "cross_attention_dim": WIDTH,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd": {
        "block_out_channels": (16, 32),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
    },
    "sdxl": {
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
        "use_linear_projection": True,
    },
    "kandinsky": {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "attention_head_dim": 4,
        "resnet_time_scale_shift": "scale_shift",
    },
}


def tiny_unet(name: str) -> Tiny:
    """A network, always the same one."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = stirred(UNet2DConditionModel(**COMMON, **UNETS[name])).eval().requires_grad_(False)
        pos, neg = ({"text": 3 * torch.randn(1, 7, WIDTH)} for _ in range(2))
    denoise = NetDenoiser(net, VP, torch.float32, "v_prediction", unet_call)
    return Tiny(denoise, Conds(Cond("pos", pos), Cond("neg", neg)), (4, 8, 12))


def unet_call(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = net(x, round(1000 * t) - 1, encoder_hidden_states=embeds["text"], return_dict=False)[0]
    return out
