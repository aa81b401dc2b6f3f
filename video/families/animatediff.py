"""animatediff: AnimateDiff: the UNet of Stable Diffusion 1.x with motion modules between its layers, on a VP path.

An AnimateDiffPipeline folder, the motion adapter beside the UNet or already inside it. Every frame has its own latents,
coded one by one. The modules count to 32 frames or what their settings say; longer clips need `wraps/windows`.
No motion LoRAs, IP adapters or PIA.
Licence of the published weights: Apache 2.0 (motion adapters), CreativeML Open RAIL-M (Stable Diffusion).

Embeds: `text` [B,L,D].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ...pipelines.card import read_card
from ...pipelines.errors import BadInput, BadWeights
from ...pipelines.families._common import Text, spacing, vp_path
from ...pipelines.families._denoiser import ESTIMATES, NetDenoiser
from ...pipelines.families._opened import open_parts
from ...pipelines.paths import step_of
from ...pipelines.protocols import Defaults, Limits, Model, Path
from ..protocols import Lengths, Span
from ._clips import ClipCheckpoint, ClipCodec, framewise, plain_decode, plain_encode


@dataclass(frozen=True)
class AnimateDiff:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("AnimateDiffPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        pipe, vae = opened.pipe, opened.net("vae")
        net = pipe.unet.to(device).eval().requires_grad_(False)
        kind = str(opened.scheduler.get("prediction_type", "epsilon"))
        if kind not in ESTIMATES:
            raise BadWeights(f"{folder}: prediction_type is {kind!r}; known are {', '.join(ESTIMATES)}")
        path, own = vp_path(opened.scheduler, kind, folder), spacing(opened.scheduler, folder)
        codec = ClipCodec(
            vae,
            channels=vae.config.latent_channels,
            factor=pipe.vae_scale_factor,
            every=1,
            std=1 / vae.config.scaling_factor,
            decoder=framewise(plain_decode),
            encoder=framewise(plain_encode),
        )
        if net.config.in_channels != codec.channels:
            raise BadWeights(
                f"{folder}: {net.config.in_channels} channels go in and the VAE makes {codec.channels}; "
                "PIA and other variants with more channels are not supported"
            )
        card, words = read_card(folder, codec.channels), Text.for_clip(pipe.tokenizer, pipe.text_encoder)
        side = net.config.sample_size * codec.factor

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            return {"text": pipe.encode_prompt(list(prompts), device, 1, False)[0]}

        return ClipCheckpoint(
            name=card.name or folder.name,
            family="animatediff",
            denoise=NetDenoiser(net, path, dtype, kind, partial(_output, path=path)),
            limits=Limits(codec.factor, codec.factor, 2048, words.limit),
            defaults=card.over(Defaults(side, side, 25, 7.5, "ddim", "uniform")),
            codec=codec,
            text=words,
            embed=embed,
            schedule_id="uniform",
            spaced=lambda shape: own,
            parts=opened.parts,
            card=card,
            lengths=Lengths(1, 16, 8),
            span=Span(16, 8),
        )


def _output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path) -> Tensor:
    """What the network predicts, [N,C,F,h,w]; it takes a prompt for every frame."""
    frames, most = x.shape[2], net.config.motion_max_seq_length
    if frames > most:
        raise BadInput(
            "frames", f"frames = {frames}: the motion modules count to {most}; use the wrap windows"
        )
    steps = torch.full((len(x),), step_of(path, t), device=x.device)
    out: Tensor = net(x, steps, embeds["text"].repeat_interleave(frames, dim=0), return_dict=False)[0]
    return out
