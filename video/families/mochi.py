"""mochi: Mochi 1: an asymmetric two-stream transformer on a flow path, its time running the other way, with T5.

A MochiPipeline folder. Clips have 6 k + 1 frames. Times are linear-quadratic.
Licence of the published weights: Apache 2.0.

Embeds: `text` [B,L,D], `mask` [B,L].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ...pipelines.card import read_card
from ...pipelines.families._common import Text
from ...pipelines.families._denoiser import NetDenoiser
from ...pipelines.families._opened import open_parts
from ...pipelines.paths import flow
from ...pipelines.protocols import Defaults, Limits, Model
from ...pipelines.schedules.linear_quadratic import LinearQuadratic
from ..protocols import Lengths, Span
from ._clips import ClipCheckpoint, ClipCodec

TOKENS = 256
SCHEDULE = "linear-quadratic"


@dataclass(frozen=True)
class Mochi:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("MochiPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, vae = opened.net("transformer"), opened.net("vae")
        scale, standardised = vae.config.scaling_factor, vae.config.latents_std is not None
        codec = ClipCodec(
            vae,
            channels=vae.config.latent_channels,
            factor=vae.spatial_compression_ratio,
            every=vae.temporal_compression_ratio,
            mean=vae.config.latents_mean if standardised else 0.0,
            std=[std / scale for std in vae.config.latents_std] if standardised else 1 / scale,
        )
        multiple = codec.factor * net.config.patch_size
        card, words = read_card(folder, codec.channels), Text(opened.pipe.tokenizer, TOKENS)

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, mask, _, _ = opened.pipe.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, max_sequence_length=words.limit
            )
            return {"text": text, "mask": mask}

        return ClipCheckpoint(
            name=card.name or folder.name,
            family="mochi",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(multiple, multiple, 2048, words.limit),
            defaults=card.over(Defaults(848, 480, 64, 4.5, "ddim", SCHEDULE)),
            codec=codec,
            text=words,
            embed=embed,
            schedule_id=SCHEDULE,
            spaced=lambda shape: LinearQuadratic(),
            parts=opened.parts,
            card=card,
            lengths=Lengths(codec.every, 85, 30),
            span=Span(85, 30),
        )


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,f,h,w] at x; the network says x0 - eps, and its time is 0 at noise."""
    out: Tensor = net(
        hidden_states=x,
        encoder_hidden_states=embeds["text"],
        timestep=torch.full((len(x),), 1000 * (1 - t), device=x.device),
        encoder_attention_mask=embeds["mask"],
        return_dict=False,
    )[0]
    return -out
