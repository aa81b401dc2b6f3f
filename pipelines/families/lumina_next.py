"""lumina_next: Lumina-Next: a cross-attention transformer on a flow path, prompts through Gemma.

A LuminaPipeline folder. The network counts time from noise to data and predicts x0 - eps; both are turned round
here. Positions are stretched to the picture's area, and attention is scaled by its number of tokens, as the pipeline
does by default. Guidance acts on all channels, where the pipeline guides the first three of four, and a prompt to
avoid keeps its full length, where the pipeline cuts it to that of the prompt.
Licence of the published weights: Apache-2.0; Gemma's terms for the text encoder.

Embeds: `text` [B,L,D], `mask` [B,L].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..paths import flow
from ..protocols import Defaults, Limits, Model
from ._common import Checkpoint, Codec, Text, flow_schedule
from ._denoiser import NetDenoiser
from ._opened import open_parts
from ._schedules import BothEnds

SCHEDULE = "flow-shift"
TOKENS = 256


@dataclass(frozen=True)
class LuminaNext:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("LuminaPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("transformer"), Codec(opened.net("vae"))
        words = Text(opened.pipe.tokenizer, TOKENS)
        own = BothEnds(flow_schedule(opened.scheduler, folder)[0].shift)
        card = read_card(folder, codec.channels)
        side = net.config.sample_size * codec.factor
        defaults = card.over(Defaults(side, side, 30, 4.0, "ddim", SCHEDULE))
        multiple = codec.factor * net.config.patch_size

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, mask, _, _ = opened.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
            return {"text": text, "mask": mask}

        return Checkpoint(
            name=card.name or folder.name,
            family="lumina_next",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(multiple, 2 * multiple, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=embed,
            schedule_id=SCHEDULE,
            schedule_for=lambda width, height: own,
            parts=opened.parts,
            card=card,
        )


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    cells, patch = net.config.sample_size, net.patch_size
    height, width = x.shape[2:]
    stretch = math.sqrt(height * width) / cells
    rotary = get_2d_rotary_pos_embed_lumina(
        net.head_dim, height // patch, width // patch, linear_factor=stretch, ntk_factor=1.0
    )
    out: Tensor = net(
        hidden_states=x,
        timestep=torch.full((len(x),), 1 - t, device=x.device),
        encoder_hidden_states=embeds["text"],
        encoder_mask=embeds["mask"],
        image_rotary_emb=rotary,
        cross_attention_kwargs={"base_sequence_length": (cells // patch) ** 2},
        return_dict=False,
    )[0]
    return -out[:, : x.shape[1]]
