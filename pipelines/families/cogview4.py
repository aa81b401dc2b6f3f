"""cogview4: CogView4: a transformer over joined text and picture tokens on a flow path, prompts through GLM.

A CogView4Pipeline folder. The shift of its times grows with the root of the picture's tokens, and the network is told
the time before that shift, so that it has to be undone for the size at hand. It is also told the picture's size in
pixels, as that of the original and of the target, and no crop.
Licence of the published weights: Apache-2.0.

Embeds: `text` [B,L,D], L a multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from ._schedules import TRAINED, WholeSteps, pushed

SCHEDULE = "flow-shift"
TOKENS = 1024
Shift = Callable[[int], float]
"""The factor on the odds of noise for a picture of so many tokens."""


@dataclass(frozen=True)
class CogView4:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("CogView4Pipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("transformer"), Codec(opened.net("vae"))
        words = Text(opened.pipe.tokenizer, TOKENS)
        shift = _shift(opened.scheduler, folder)
        card = read_card(folder, codec.channels)
        side = net.config.sample_size * codec.factor
        defaults = card.over(Defaults(side, side, 50, 5.0, "ddim", SCHEDULE))
        multiple = codec.factor * net.config.patch_size

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            return {"text": opened.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)[0]}

        def schedule(width: int, height: int) -> Schedule:
            return WholeSteps(shift((width // multiple) * (height // multiple)))

        call = partial(_velocity, shift=shift, factor=codec.factor)
        return Checkpoint(
            name=card.name or folder.name,
            family="cogview4",
            denoise=NetDenoiser(net, flow(), dtype, "flow", call),
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


def _shift(config: Mapping[str, Any], folder: Folder) -> Shift:
    own, dynamic = flow_schedule(config, folder)
    if not dynamic:
        return lambda tokens: own.shift
    linear = config.get("time_shift_type") == "linear"

    def shift(tokens: int) -> float:
        grown = math.sqrt(tokens / own.base_tokens) * own.max_shift + own.base_shift
        return grown if linear else math.exp(grown)

    return shift


def _velocity(
    net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], shift: Shift, factor: int
) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]."""
    height, width = x.shape[2:]
    before = pushed(t, 1 / shift(height * width // net.config.patch_size**2))
    size = torch.tensor([[height * factor, width * factor]], dtype=x.dtype, device=x.device)
    size = size.expand(len(x), 2).contiguous()
    out: Tensor = net(
        hidden_states=x,
        encoder_hidden_states=embeds["text"],
        timestep=torch.full((len(x),), TRAINED * before, device=x.device),
        original_size=size,
        target_size=size,
        crop_coords=torch.zeros_like(size),
        return_dict=False,
    )[0]
    return out
