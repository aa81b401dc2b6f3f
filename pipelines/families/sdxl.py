"""sdxl: Stable Diffusion XL and anything in its layout: a UNet on a VP path, prompts through two CLIPs.

StableDiffusionXLPipeline folders: the base, smaller UNets (KOALA, SSD-1B, Vega), and what was distilled from them
(Turbo, Lightning, Hyper-SD, NitroFusion). A folder does not say that it was distilled: an LCM or TCD scheduler, or
Euler with trailing times and eps, is taken as the sign, and gives 4 steps and guidance 1; a card or the request says
otherwise (KOALA-Lightning, which has guidance, is taken for such a one too).
StableDiffusionXLImg2ImgPipeline folders: the refiner, with the second CLIP alone, told an aesthetic score (6, and 2.5
for what to avoid) instead of the size to make. StableDiffusionXLInpaintPipeline folders: 9 channels, see sd_inpaint.

The UNet is told the picture's size in pixels, uncropped. An empty negative prompt is zeros where the folder asks for
it (force_zeros_for_empty_prompt). EDM schedulers (Playground 2.5) are refused.

Licence of the published weights: CreativeML Open RAIL++-M (base, refiner); Stability's own for Turbo.
Embeds: `text` [B,L,D], `pooled` [B,P], `score` [B] (refiner), `beside` [B,1+C,h,w] (inpainting), and `guidance` [B]
where the UNet was distilled to be told it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..paths import step_of
from ..protocols import Limits, Model, Path
from ._clip_prompts import ClipPrompts, say
from ._common import Checkpoint, Codec
from ._denoiser import NetDenoiser
from ._opened import open_parts
from ._unets import SCHEDULE, check_channels, guidance_features, inpainting, read_noise, style_of, with_beside

INPAINTING = "StableDiffusionXLInpaintPipeline"
SCORES = 6.0, 2.5
"""Aesthetic scores of what is wanted and of what is to be avoided."""


@dataclass(frozen=True)
class Sdxl:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", INPAINTING)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        noise = read_noise(folder)
        opened = open_parts(folder, dtype, device)
        net, codec, pipe = opened.net("unet"), Codec(opened.net("vae")), opened.pipe
        sees = type(opened.pipe).__name__ == INPAINTING and net.config.in_channels != codec.channels
        check_channels(net, codec, 1 + codec.channels if sees else 0, folder)
        pairs = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, opened.net("text_encoder_2")))
        clips = tuple(ClipPrompts.of(words, clip, -2) for words, clip in pairs if clip is not None)
        card = read_card(folder, codec.channels)
        defaults = card.over(noise.defaults(net, codec.factor, 5.0))
        guidance = torch.tensor([defaults.guidance], device=device) if net.config.time_cond_proj_dim else None
        call = partial(_output, path=noise.path, factor=codec.factor)
        plain = Checkpoint(
            name=card.name or folder.name,
            family="sdxl",
            denoise=NetDenoiser(net, noise.path, dtype, noise.kind, call),
            limits=Limits(codec.factor, codec.factor, 4096, clips[-1].words.most),
            defaults=defaults,
            codec=codec,
            text=clips[-1].words,
            learners=clips,
            embed=_Encoder(clips, pipe.config, guidance),
            schedule_id=SCHEDULE,
            schedule_for=lambda width, height: noise.schedule,
            parts=opened.parts,
            card=card,
        )
        return replace(plain, needs=("image", "mask"), attached=inpainting(codec)) if sees else plain


@dataclass(frozen=True)
class _Encoder:
    clips: tuple[ClipPrompts, ...]
    config: Mapping[str, Any]
    guidance: Tensor | None

    def __call__(self, prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        config, said = self.config, say(self.clips, prompts)
        text, pooled = torch.cat([each.text for each in said], dim=-1), said[-1].pooled
        if negative and config["force_zeros_for_empty_prompt"]:
            kept = text.new_tensor([float(bool(prompt)) for prompt in prompts])
            text, pooled = text * kept[:, None, None], pooled * kept[:, None]
        embeds = said[-1].embeds() | {"text": text, "pooled": pooled}
        if config.get("requires_aesthetics_score", False):
            embeds["score"] = torch.tensor([SCORES[negative]], device=text.device)
        return embeds if self.guidance is None else embeds | {"guidance": self.guidance}


def _output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path, factor: int) -> Tensor:
    """What the UNet says at x [N,C,h,w]. It is told size, corner and target size, or the score in its place."""
    size = torch.tensor(
        [x.shape[2] * factor, x.shape[3] * factor, 0, 0], device=x.device, dtype=torch.float32
    )
    last = embeds["score"][:, None] if "score" in embeds else size[:2].expand(len(x), 2)
    out: Tensor = net(
        with_beside(net, x, embeds),
        torch.full((len(x),), step_of(path, t), device=x.device, dtype=torch.float32),
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds.get("mask"),
        timestep_cond=guidance_features(net, x, embeds),
        added_cond_kwargs={
            "text_embeds": embeds["pooled"],
            "time_ids": torch.cat([size.expand(len(x), 4), last], dim=1),
            **style_of(embeds),
        },
        return_dict=False,
    )[0]
    return out
