"""auraflow: AuraFlow: a joint-attention transformer on a flow path, prompts through UMT5.

An AuraFlowPipeline folder. Positions are a learned square table, so no side may be longer than the table.
Licence of the published weights: Apache-2.0.

Embeds: `text` [B,L,D], zero where there is no token.
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
class AuraFlow:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("AuraFlowPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("transformer"), Codec(opened.net("vae"))
        words = Text(opened.pipe.tokenizer, TOKENS)
        own = BothEnds(flow_schedule(opened.scheduler, folder)[0].shift)
        card = read_card(folder, codec.channels)
        multiple = codec.factor * net.config.patch_size
        largest = math.isqrt(net.config.pos_embed_max_size) * multiple
        side = min(1024, largest)
        defaults = card.over(Defaults(side, side, 50, 3.5, "ddim", SCHEDULE))

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            return {"text": opened.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]}

        return Checkpoint(
            name=card.name or folder.name,
            family="auraflow",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(multiple, multiple, largest, words.limit),
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
    out: Tensor = net(
        x,
        encoder_hidden_states=embeds["text"],
        timestep=torch.full((len(x),), t, device=x.device),
        return_dict=False,
    )[0]
    return out
