"""Tiny UNets as denoisers: the layouts of Stable Diffusion, SDXL, Kandinsky 2.2, AnimateDiff and SVD."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from sfumato.pipelines.families._denoiser import NetDenoiser
from sfumato.pipelines.paths import ve
from sfumato.pipelines.protocols import Cond, Conds
from sfumato.video.families import animatediff, svd
from tiny_models import stirred
from tiny_nets import FAMILIES, VP, Tiny, tiny
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
    "animatediff": {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
        "motion_max_seq_length": 8,
    },
}
SVD = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "block_out_channels": (64, 64),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "num_frames": 3,
}
NAMES = (*UNETS, "svd")
EVERY = (*FAMILIES, *(f"{name} unet" for name in NAMES))
"""Of transformers and UNets."""


def any_tiny(name: str) -> Tiny:
    """One of EVERY."""
    return tiny_unet(name.removesuffix(" unet")) if name.endswith(" unet") else tiny(name)


def tiny_unet(name: str) -> Tiny:
    """A network, always the same one."""
    from diffusers import UNet2DConditionModel, UNetMotionModel, UNetSpatioTemporalConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "svd":
            net: Any = UNetSpatioTemporalConditionModel(**SVD)
        else:
            kind = UNetMotionModel if name == "animatediff" else UNet2DConditionModel
            net = kind(**COMMON, **UNETS[name])
        stirred(net).eval().requires_grad_(False)
        pos, neg = (_embeds(name) for _ in range(2))
    path, call = (ve(0.02, 50.0), svd._output) if name == "svd" else (VP, unet_call)
    if name == "animatediff":
        call = partial(animatediff._output, path=VP)
    denoise = NetDenoiser(net, path, torch.float32, "v_prediction", call)
    shape = (4, 8, 12) if name in ("sd", "sdxl", "kandinsky") else (4, 3, 8, 12)
    return Tiny(denoise, Conds(Cond("pos", pos), Cond("neg", neg)), shape)


def _embeds(name: str) -> dict[str, Tensor]:
    if name != "svd":
        return {"text": 3 * torch.randn(1, 7, WIDTH)}
    numbers = {part: torch.tensor([value]) for part, value in {"fps": 6, "motion": 127, "blur": 0.02}.items()}
    return {"seen": 3 * torch.randn(1, 1, 16), "beside": torch.randn(1, 4, 8, 12), **numbers}


def unet_call(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = net(x, round(1000 * t) - 1, encoder_hidden_states=embeds["text"], return_dict=False)[0]
    return out
