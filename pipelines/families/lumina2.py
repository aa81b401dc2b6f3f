"""lumina2: Lumina-Image 2.0: a transformer over joined text and picture tokens, prompts through Gemma 2.

A Lumina2Pipeline folder. What is asked for follows the pipeline's system prompt, which takes some of the 256 tokens;
what is to be avoided does not. The network counts time from noise to data and predicts x0 - eps; both are turned
round here. Guidance is plain: the pipeline's rescaling (`cfg_normalization`) and its truncation are left out.
Licence of the published weights: Apache-2.0; Gemma's terms for the text encoder.

Embeds: `text` [B,L,D], `mask` [B,L].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..paths import flow
from ..protocols import Defaults, Limits, Model, Schedule
from ._common import Checkpoint, Codec, Text, flow_schedule
from ._denoiser import NetDenoiser
from ._opened import open_parts

SCHEDULE = "flow-shift"
TOKENS = 256
MARK = " <Prompt Start> "
"""What the pipeline writes between its system prompt and the prompt."""


@dataclass(frozen=True)
class Lumina2:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("Lumina2Pipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec, pipe = opened.net("transformer"), Codec(opened.net("vae")), opened.pipe
        before = len(pipe.tokenizer(pipe.system_prompt + MARK).input_ids)
        words = Text(pipe.tokenizer, max(TOKENS + 1 - before, 1))  # the first token is in both counts
        shift, dynamic = flow_schedule(opened.scheduler, folder)
        card = read_card(folder, codec.channels)
        side = net.config.sample_size * codec.factor
        defaults = card.over(Defaults(side, side, 30, 4.0, "ddim", SCHEDULE))
        multiple = codec.factor * net.config.patch_size

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            if negative:  # the pipeline makes them without a system prompt, but only beside a prompt
                _, _, text, mask = pipe.encode_prompt([""] * len(prompts), negative_prompt=list(prompts))
            else:
                text, mask, _, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
            return {"text": text, "mask": mask}

        def schedule(width: int, height: int) -> Schedule:
            return replace(shift, tokens=(width // multiple) * (height // multiple)) if dynamic else shift

        return Checkpoint(
            name=card.name or folder.name,
            family="lumina2",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(multiple, multiple, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=embed,
            schedule_id=SCHEDULE,
            schedule_for=schedule,
            parts=opened.parts,
            card=card,
        )


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]."""
    out: Tensor = net(
        hidden_states=x,
        timestep=torch.full((len(x),), 1 - t, device=x.device),
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds["mask"],
        return_dict=False,
    )[0]
    return -out
