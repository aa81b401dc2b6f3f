"""pixart: PixArt-alpha and PixArt-Sigma: a cross-attention transformer on a VP path, prompts through T5.

A PixArtAlphaPipeline or PixArtSigmaPipeline folder. The network also gives a variance, which is dropped. Models of
1024 px (alpha) are told the picture's size in pixels and its ratio.

Embeds: `text` [B,L,D], `mask` [B,L].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..paths import step_of
from ..protocols import Defaults, Limits, Model, Path
from ._common import Checkpoint, Codec, Text, spacing, vp_path
from ._denoiser import NetDenoiser
from ._opened import open_parts

TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


@dataclass(frozen=True)
class PixArt:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = tuple(TOKENS)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("transformer"), Codec(opened.net("vae"))
        words = Text(opened.pipe.tokenizer, TOKENS[type(opened.pipe).__name__])
        path = vp_path(opened.scheduler, "epsilon", folder)
        card = read_card(folder, codec.channels)
        side = net.config.sample_size * codec.factor
        defaults = card.over(Defaults(side, side, 20, 4.5, "dpmpp-2m", "uniform"))
        own = spacing(opened.scheduler, folder)

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, mask, _, _ = opened.pipe.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, max_sequence_length=words.limit
            )
            return {"text": text, "mask": mask}

        return Checkpoint(
            name=card.name or folder.name,
            family="pixart",
            denoise=NetDenoiser(net, path, dtype, "epsilon", partial(_noise, path=path, factor=codec.factor)),
            limits=Limits(codec.factor * net.config.patch_size, 2 * codec.factor, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=embed,
            schedule_id="uniform",
            schedule_for=lambda width, height: own,
            parts=opened.parts,
            card=card,
        )


def _noise(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path, factor: int) -> Tensor:
    """The noise [N,C,h,w] in x."""
    pixels = x.new_tensor([x.shape[2] * factor, x.shape[3] * factor]).expand(len(x), 2)
    sized = net.use_additional_conditions
    out: Tensor = net(
        x,
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds["mask"],
        timestep=torch.full((len(x),), step_of(path, t), device=x.device),
        added_cond_kwargs={
            "resolution": pixels if sized else None,
            "aspect_ratio": (pixels[:, :1] / pixels[:, 1:]) if sized else None,
        },
        return_dict=False,
    )[0]
    return out[:, : x.shape[1]]
