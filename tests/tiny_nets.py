"""Tiny networks of every family as denoisers, three blocks deep, with conditions that differ strongly; no checkpoint.

Each is called exactly as its family calls it (LTX and CogVideoX, which need their pipelines, as these do).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sfumato.pipelines.families import (
    auraflow,
    cogview3,
    cogview4,
    flux,
    flux2,
    hunyuan_dit,
    lumina2,
    lumina_next,
    pixart,
    qwen_image,
    sana,
    sd3,
    z_image,
)
from sfumato.pipelines.families._denoiser import NetDenoiser
from sfumato.pipelines.paths import flow, vp_from_config
from sfumato.pipelines.protocols import Cond, Conds
from sfumato.video.families import hunyuan_video, mochi, wan
from tiny_models import stirred
from torch import Tensor, nn

VP = vp_from_config({"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012})
LONG, SHORT = 7, 5


@dataclass
class Tiny:
    denoise: NetDenoiser
    conds: Conds
    shape: tuple[int, ...]

    def noise(self, seed: int, count: int = 1) -> Tensor:
        parts = [
            torch.randn(self.shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)
        ]
        return torch.stack(parts)

    def made_by(self, net: nn.Module) -> Tensor:
        """What such a network makes of the noise of seed 1."""
        return replace(self.denoise, net=net)(self.noise(1), 0.6, self.conds.pos)[0].x0


def tiny(name: str) -> Tiny:
    """A network, always the same one."""
    from diffusers import models

    kind, config, call, embeds, shape = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = stirred(getattr(models, kind)(**config), 0.2).eval().requires_grad_(False)
        pos, neg = ({part: make() for part, make in embeds.items()} for _ in range(2))
    on_vp = name in ("pixart", "hunyuan_dit", "cogview3", "cogvideox")
    denoise = NetDenoiser(
        net, VP if on_vp else flow(), torch.float32, "v_prediction" if on_vp else "flow", call
    )
    return Tiny(denoise, Conds(Cond("pos", pos), Cond("neg", neg)), shape)


def few_steps(path: str) -> list[float]:
    """Seven times, six steps."""
    if path == "ve":
        return [50.0, 20.0, 8.0, 3.0, 1.0, 0.3, 0.02]
    return [0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.05] if path != "flow" else [1.0, 0.9, 0.75, 0.6, 0.4, 0.2, 0.0]


def text(width: int, length: int = LONG) -> Callable[[], Tensor]:
    return lambda: 3 * torch.randn(1, length, width)


def pooled(width: int) -> Callable[[], Tensor]:
    return lambda: 3 * torch.randn(1, width)


def mask(length: int = LONG, kept: int = SHORT) -> Callable[[], Tensor]:
    return lambda: (torch.arange(length) < kept).long()[None]


def _cogvideox(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = net(
        hidden_states=x.transpose(1, 2),
        encoder_hidden_states=embeds["text"],
        timestep=torch.full((len(x),), round(1000 * t)),
        return_dict=False,
    )[0]
    return out.transpose(1, 2)


def _ltx(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = net(
        hidden_states=x.flatten(2).mT,
        encoder_hidden_states=embeds["text"],
        timestep=torch.full((len(x),), 1000 * t),
        encoder_attention_mask=embeds["mask"],
        num_frames=x.shape[2],
        height=x.shape[3],
        width=x.shape[4],
        return_dict=False,
    )[0]
    return out.mT.reshape(x.shape)


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
FAMILIES: dict[str, tuple[str, dict, Any, dict, tuple[int, ...]]] = {
    "flux": (
        "FluxTransformer2DModel",
        {**HEADS, "in_channels": 64, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 32,
         "pooled_projection_dim": 24, "guidance_embeds": False, "axes_dims_rope": (4, 6, 6)},
        flux._velocity, {"text": text(32), "pooled": pooled(24)}, (16, 6, 4),
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        {**HEADS, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 48,
         "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False},
        flux2._velocity, {"text": text(48)}, (16, 3, 4),
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {**HEADS, "sample_size": 8, "patch_size": 2, "in_channels": 16, "num_layers": 3, "joint_attention_dim": 24,
         "caption_projection_dim": 32, "pooled_projection_dim": 56, "out_channels": 16, "pos_embed_max_size": 16},
        sd3._velocity, {"text": text(24), "pooled": pooled(56)}, (16, 6, 4),
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {**HEADS, "sample_size": 8, "num_layers": 3, "caption_channels": 32, "in_channels": 4,
         "cross_attention_dim": 32, "out_channels": 8},
        partial(pixart._noise, path=VP, factor=8), {"text": text(32), "mask": mask()}, (4, 6, 4),
    ),
    "sana": (
        "SanaTransformer2DModel",
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3,
         "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
         "caption_channels": 32, "sample_size": 8},
        partial(sana._velocity, scale=1000.0), {"text": text(32), "mask": mask()}, (8, 3, 2),
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "in_channels": 16, "hidden_size": 24, "num_layers": 3, "num_refiner_layers": 1,
         "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": (4, 4, 4),
         "axes_lens": (300, 32, 32), "cap_feat_dim": 32},
        lumina2._velocity, {"text": text(32), "mask": mask()}, (16, 6, 4),
    ),
    "lumina_next": (
        "LuminaNextDiT2DModel",
        {"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 3, "num_attention_heads": 3,
         "num_kv_heads": 1, "multiple_of": 8, "cross_attention_dim": 32},
        lumina_next._velocity, {"text": text(32), "mask": mask()}, (4, 6, 4),
    ),
    "z_image": (
        "ZImageTransformer2DModel",
        {"in_channels": 16, "dim": 24, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 16, "axes_dims": [4, 4, 4], "axes_lens": [1024, 32, 32]},
        z_image._velocity, {"text": text(16)}, (16, 6, 4),
    ),
    "qwen_image": (
        "QwenImageTransformer2DModel",
        {"in_channels": 16, "out_channels": 4, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 12,
         "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 4)},
        qwen_image._velocity, {"text": text(16)}, (4, 6, 4),
    ),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        {**HEADS, "sample_size": 8, "in_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2,
         "joint_attention_dim": 32, "caption_projection_dim": 32, "pos_embed_max_size": 64},
        auraflow._velocity, {"text": text(32)}, (4, 6, 4),
    ),
    "cogview3": (
        "CogView3PlusTransformer2DModel",
        {**HEADS, "in_channels": 16, "out_channels": 16, "num_layers": 3, "text_embed_dim": 32, "time_embed_dim": 16,
         "condition_dim": 8, "pos_embed_max_size": 16, "sample_size": 8},
        partial(cogview3._output, path=VP, factor=8), {"text": text(32)}, (16, 6, 4),
    ),
    "cogview4": (
        "CogView4Transformer2DModel",
        {**HEADS, "in_channels": 16, "out_channels": 16, "num_layers": 3, "text_embed_dim": 32, "time_embed_dim": 16,
         "condition_dim": 8, "sample_size": 8, "rope_axes_dim": (16, 16)},
        partial(cogview4._velocity, shift=lambda tokens: 1.0, factor=8), {"text": text(32)}, (16, 6, 4),
    ),
    "hunyuan_dit": (
        "HunyuanDiT2DModel",
        {**HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 32, "num_layers": 6,
         "mlp_ratio": 2.0, "cross_attention_dim": 24, "cross_attention_dim_t5": 32, "pooled_projection_dim": 16,
         "text_len": LONG, "text_len_t5": SHORT},
        partial(hunyuan_dit._output, path=VP, factor=8),
        {"text": text(24), "mask": mask(), "text_2": text(32, SHORT), "mask_2": mask(SHORT, 3)}, (4, 6, 4),
    ),
    "wan": (
        "WanTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 24, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3},
        partial(wan._velocity, whole=False, tokenwise=False), {"text": text(24)}, (4, 2, 4, 4),
    ),
    "ltx": (
        "LTXVideoTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "num_layers": 3,
         "caption_channels": 24},
        _ltx, {"text": text(24), "mask": mask()}, (4, 2, 3, 2),
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 24, "num_layers": 3,
         "sample_width": 4, "sample_height": 4, "sample_frames": 5, "max_text_seq_length": LONG},
        _cogvideox, {"text": text(24)}, (4, 2, 4, 4),
    ),
    "hunyuan_video": (
        "HunyuanVideoTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2,
         "num_refiner_layers": 1, "guidance_embeds": False, "text_embed_dim": 24, "pooled_projection_dim": 8,
         "rope_axes_dim": (4, 6, 6)},
        hunyuan_video._velocity, {"text": text(24), "mask": mask(), "pooled": pooled(8)}, (4, 2, 4, 4),
    ),
    "mochi": (
        "MochiTransformer3DModel",
        {**HEADS, "num_layers": 3, "pooled_projection_dim": 24, "text_embed_dim": 32, "time_embed_dim": 16},
        mochi._velocity, {"text": text(32), "mask": mask()}, (12, 2, 4, 4),
    ),
}  # fmt: skip
"""Name -> class, config, how the family calls it, its conditions' embeds, and the shape of one x."""
