"""hunyuan-video: HunyuanVideo: a two-stream transformer on a flow path, prompts through Llama and CLIP.

A HunyuanVideoPipeline folder. The prompt goes into the published template that asks for a description of a video. The
network was distilled to be told its guidance scale (`distilled`); a negative prompt with CFG comes on top, at the usual
cost. No start from a picture.
Licence of the published weights: Tencent Hunyuan Community License, not for use in the EU, the UK and South Korea.

Embeds: `text` [B,L,D], `mask` [B,L], `pooled` [B,P], `guidance` [B].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ...pipelines.card import read_card
from ...pipelines.errors import BadWeights
from ...pipelines.families._common import Text, flow_schedule
from ...pipelines.families._denoiser import NetDenoiser
from ...pipelines.families._opened import open_parts
from ...pipelines.paths import flow
from ...pipelines.protocols import Defaults, Limits, Model
from ..protocols import Lengths, Span
from ._clips import ClipCheckpoint, ClipCodec

TOKENS = 256


@dataclass(frozen=True)
class HunyuanVideo:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("HunyuanVideoPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, vae, pipe = opened.net("transformer"), opened.net("vae"), opened.pipe
        if net.config.image_condition_type is not None:
            raise BadWeights(f"{folder}: the network starts from pictures, which is not supported")
        codec = ClipCodec(
            vae,
            channels=vae.config.latent_channels,
            factor=vae.spatial_compression_ratio,
            every=vae.temporal_compression_ratio,
            std=1 / vae.config.scaling_factor,
        )
        shift, dynamic = flow_schedule(opened.scheduler, folder)
        if dynamic:
            raise BadWeights(f"{folder}: use_dynamic_shifting is not supported here; set it to false")
        multiple = codec.factor * net.config.patch_size
        card, words = read_card(folder, codec.channels), Text(pipe.tokenizer, TOKENS)
        told = net.config.guidance_embeds
        defaults = card.over(Defaults(1280, 720, 50, 6.0, "ddim", "flow-shift"))

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, pooled, mask = pipe.encode_prompt(list(prompts), max_sequence_length=words.limit)
            embeds = {"text": text, "pooled": pooled, "mask": mask}
            return embeds | ({"guidance": torch.tensor([defaults.guidance], device=device)} if told else {})

        return ClipCheckpoint(
            name=card.name or folder.name,
            family="hunyuan-video",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(multiple, multiple, 2048, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=embed,
            schedule_id="flow-shift",
            spaced=lambda shape: shift,
            parts=opened.parts,
            card=card,
            lengths=Lengths(codec.every * net.config.patch_size_t, 129, 24),
            span=Span(129, 24),
        )


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,f,h,w] at x [N,C,f,h,w]."""
    guidance = embeds.get("guidance")
    out: Tensor = net(
        hidden_states=x,
        timestep=torch.full((len(x),), 1000 * t, device=x.device),
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds["mask"].to(x.dtype),
        pooled_projections=embeds["pooled"],
        guidance=None if guidance is None else 1000 * guidance.to(x.dtype),
        return_dict=False,
    )[0]
    return out
