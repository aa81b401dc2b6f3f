"""ltx: LTX-Video: a transformer on a flow path over packed tokens, told the frame rate, prompts through T5.

An LTXPipeline folder (0.9 to 0.9.5). The frame rate stretches the positions in time. A decoder with a time of its own
(0.9.1 and later) gets the latents with a little noise, always the same. No start from a picture, no upsampler.
Licence of the published weights: LTX-Video Open Weights License.

Embeds: `text` [B,L,D], `mask` [B,L], `fps` [B].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ...pipelines.card import read_card
from ...pipelines.families._common import Text, flow_schedule
from ...pipelines.families._denoiser import NetDenoiser
from ...pipelines.families._opened import open_parts
from ...pipelines.paths import flow
from ...pipelines.protocols import Defaults, Limits, Model, Schedule
from ..protocols import Lengths, Span
from ._clips import ClipCheckpoint, ClipCodec, plain_decode

TOKENS = 128
DECODE_TIME, DECODE_NOISE = 0.05, 0.025
"""The published settings of a decoder with a time."""


@dataclass(frozen=True)
class Ltx:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("LTXPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, vae = opened.net("transformer"), opened.net("vae")
        scale = vae.config.scaling_factor
        codec = ClipCodec(
            vae,
            channels=vae.config.latent_channels,
            factor=vae.spatial_compression_ratio,
            every=vae.temporal_compression_ratio,
            mean=vae.latents_mean.tolist(),
            std=[std / scale for std in vae.latents_std.tolist()],
            decoder=_decode if vae.config.timestep_conditioning else plain_decode,
        )
        shift, dynamic = flow_schedule(opened.scheduler, folder)
        patch, patch_t = net.config.patch_size, net.config.patch_size_t
        card, words = read_card(folder, codec.channels), Text(opened.pipe.tokenizer, TOKENS)

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, mask, _, _ = opened.pipe.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, max_sequence_length=words.limit
            )
            return {"text": text, "mask": mask}

        def spaced(shape: Sequence[int]) -> Schedule:
            return replace(shift, tokens=prod(shape[1:])) if dynamic else shift

        return ClipCheckpoint(
            name=card.name or folder.name,
            family="ltx",
            denoise=NetDenoiser(net, flow(), dtype, "flow", partial(_velocity, pipe=opened.pipe)),
            limits=Limits(codec.factor * patch, codec.factor * patch, 2048, words.limit),
            defaults=card.over(Defaults(704, 480, 50, 3.0, "ddim", "flow-shift")),
            codec=codec,
            text=words,
            embed=embed,
            schedule_id="flow-shift",
            spaced=spaced,
            parts=opened.parts,
            card=card,
            lengths=Lengths(codec.every * patch_t, 161, 25),
            span=Span(161, 25),
            joined=lambda pictures, span, negative: {"fps": torch.tensor([span.fps], device=device)},
        )


def _decode(vae: Any, z: Tensor) -> Tensor:
    """With the noise of seed 0, the same for each clip; layers that draw more by themselves are seeded, too."""
    noise = torch.randn((1, *z.shape[1:]), generator=torch.Generator().manual_seed(0)).to(z)
    z = (1 - DECODE_NOISE) * z + DECODE_NOISE * noise
    devices = [z.device] if z.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        frames: Tensor = vae.decode(z, z.new_full((len(z),), DECODE_TIME), return_dict=False)[0]
    return frames


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], pipe: Any) -> Tensor:
    """eps - x0 [N,C,f,h,w] at x [N,C,f,h,w]."""
    patch, patch_t = net.config.patch_size, net.config.patch_size_t
    long, height, width = x.shape[2] // patch_t, x.shape[3] // patch, x.shape[4] // patch
    v = net(
        hidden_states=pipe._pack_latents(x, patch, patch_t),
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds["mask"],
        timestep=torch.full((len(x),), 1000 * t, device=x.device),
        video_coords=_places(pipe, (long, height, width), embeds["fps"]),
        return_dict=False,
    )[0]
    out: Tensor = pipe._unpack_latents(v, long, height, width, patch, patch_t)
    return out


def _places(pipe: Any, grid: tuple[int, int, int], fps: Tensor) -> Tensor:
    """Where each token is, [N,3,tokens]: seconds, row and column in pixels."""
    steps = (
        pipe.vae_temporal_compression_ratio * pipe.transformer_temporal_patch_size,
        *[pipe.vae_spatial_compression_ratio * pipe.transformer_spatial_patch_size] * 2,
    )
    axes = [step * torch.arange(n, device=fps.device).float() for step, n in zip(steps, grid, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).repeat(len(fps), 1, 1)
    places[:, 0] /= fps[:, None]
    return places
