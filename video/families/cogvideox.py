"""cogvideox: CogVideoX 2B, 5B and 1.5: a joint-attention transformer on a VP path shifted in signal to noise, with T5.

A CogVideoXPipeline folder. Positions are rotary (5B, 1.5) or added (2B). Patches of 1.5 hold two latent frames: one
more goes in front, and decodes to nothing. Clips have 8 k + 1 frames, for the decoder asks for odd numbers of latent
ones. No start from a picture.
Licence of the published weights: Apache 2.0 (2B), CogVideoX License (5B, 1.5).

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
from ._clips import ClipCheckpoint, ClipCodec


@dataclass(frozen=True)
class CogVideoX:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("CogVideoXPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, vae, pipe = opened.net("transformer"), opened.net("vae"), opened.pipe
        kind = str(opened.scheduler.get("prediction_type", "epsilon"))
        if kind not in ESTIMATES:
            raise BadWeights(f"{folder}: prediction_type is {kind!r}; known are {', '.join(ESTIMATES)}")
        path, own = vp_path(opened.scheduler, kind, folder), spacing(opened.scheduler, folder)
        paired = net.config.patch_size_t is not None
        codec = ClipCodec(
            vae,
            channels=net.config.in_channels,
            factor=pipe.vae_scale_factor_spatial,
            every=int(pipe.vae_scale_factor_temporal),
            std=1 / vae.config.scaling_factor,
            padding=net.config.patch_size_t - 1 if paired else 0,
        )
        multiple, fps = codec.factor * net.config.patch_size, 16 if paired else 8
        card, words = read_card(folder, codec.channels), Text(pipe.tokenizer, net.config.max_text_seq_length)
        width, height = (side * codec.factor for side in (net.config.sample_width, net.config.sample_height))

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, _ = pipe.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, max_sequence_length=words.limit
            )
            return {"text": text}

        return ClipCheckpoint(
            name=card.name or folder.name,
            family="cogvideox",
            denoise=NetDenoiser(net, path, dtype, kind, partial(_output, path=path, pipe=pipe)),
            limits=Limits(multiple, multiple, 2048, words.limit),
            defaults=card.over(Defaults(width, height, 50, 6.0, "ddim", "uniform")),
            codec=codec,
            text=words,
            embed=embed,
            schedule_id="uniform",
            spaced=lambda shape: own,
            parts=opened.parts,
            card=card,
            lengths=Lengths(2 * codec.every, net.config.sample_frames, fps),
            span=Span(net.config.sample_frames, fps),
        )


def _output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path, pipe: Any) -> Tensor:
    """What the network predicts, [N,C,f,h,w]; its own order of axes is [N,f,C,h,w]."""
    _check_places(net.config, x)
    height, width = (side * pipe.vae_scale_factor_spatial for side in x.shape[3:])
    rotary = net.config.use_rotary_positional_embeddings
    out: Tensor = net(
        hidden_states=x.transpose(1, 2),
        encoder_hidden_states=embeds["text"],
        timestep=torch.full((len(x),), step_of(path, t), device=x.device),
        image_rotary_emb=(
            pipe._prepare_rotary_positional_embeddings(height, width, x.shape[2], x.device)
            if rotary
            else None
        ),
        return_dict=False,
    )[0]
    return out.transpose(1, 2)


def _check_places(config: Any, x: Tensor) -> None:
    """1.5 has places for the tokens of its own size, from which smaller clips take a corner."""
    if config.patch_size_t is None or not config.use_rotary_positional_embeddings:
        return
    for name, side, most in (
        ("height", x.shape[3], config.sample_height),
        ("width", x.shape[4], config.sample_width),
    ):
        if side > most:
            raise BadInput(name, f"{name} of {side} latent cells; this network has places for {most} at most")
