"""sana: SANA, SANA 1.5 and SANA-Sprint: a linear transformer on a flow path, prompts through Gemma 2.

A SanaPipeline or SanaSprintPipeline folder, whose AutoencoderDC makes latents 32 times smaller than the picture. What
is asked for follows the instruction that diffusers puts before it; what is to be avoided does not. The scheduler may
be Euler or any solver with `use_flow_sigmas`. Sprint takes the guidance scale as an input and needs 1 to 4 steps of
consistency sampling. Sizes are used as given, where diffusers picks the nearest of a table.
Licence of the published weights: NVIDIA's non-commercial NSCL v2; Gemma's terms for the text encoder.

Embeds: `text` [B,L,D], `mask` [B,L], `guidance` [B] (Sprint).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..paths import flow
from ..protocols import Defaults, Limits, Model, Schedule
from ._codecs import DcCodec
from ._common import Checkpoint, Text, flow_schedule
from ._denoiser import NetDenoiser
from ._opened import Opened, open_parts
from ._schedules import Angles, BothEnds, Solver

SPRINT = "SanaSprintPipeline"
SCHEDULE = "flow-shift"
TOKENS = 299
"""Of the 300 that the network reads, one stays with the instruction."""


@dataclass(frozen=True)
class Sana:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("SanaPipeline", SPRINT)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("transformer"), DcCodec(opened.net("vae"))
        few = type(opened.pipe).__name__ == SPRINT
        words = Text(opened.pipe.tokenizer, TOKENS)
        card = read_card(folder, codec.channels)
        side = net.config.sample_size * codec.factor
        sampler = _sampler(opened)
        own = Angles() if few else _own(flow_schedule(opened.scheduler, folder)[0].shift, sampler)
        defaults = card.over(Defaults(side, side, 2 if few else 20, 4.5, sampler, SCHEDULE))
        scale = 1.0 if few else 1000.0 * net.config.timestep_scale
        guidance = torch.tensor([defaults.guidance], device=device) if few else None

        return Checkpoint(
            name=card.name or folder.name,
            family="sana",
            denoise=NetDenoiser(net, flow(), dtype, "flow", partial(_velocity, scale=scale)),
            limits=Limits(codec.factor * net.config.patch_size, 2 * codec.factor, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=_Encoder(opened.pipe, few, _instruction(type(opened.pipe)), guidance),
            schedule_id=SCHEDULE,
            schedule_for=lambda width, height: own,
            parts=opened.parts,
            card=card,
        )


def _sampler(opened: Opened) -> str:
    """The one nearest to the folder's scheduler."""
    known = {"SCMScheduler": "lcm", "FlowMatchEulerDiscreteScheduler": "ddim"}
    return known.get(str(opened.scheduler.get("_class_name")), "dpmpp-2m")


def _own(shift: float, sampler: str) -> Schedule:
    """The times of the folder's scheduler, which for Euler are not those for a solver."""
    return BothEnds(shift) if sampler == "ddim" else Solver(shift)


def _instruction(pipeline: type[Any]) -> list[str]:
    """The lines that the pipeline puts before a prompt if it is told nothing else."""
    return list(inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default)


@dataclass(frozen=True)
class _Encoder:
    pipe: Any
    few: bool
    instruction: list[str]
    guidance: Tensor | None

    def __call__(self, prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        before = None if negative else self.instruction
        if self.few:
            text, mask = self.pipe.encode_prompt(list(prompts), complex_human_instruction=before)
        else:
            text, mask, _, _ = self.pipe.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, complex_human_instruction=before
            )
        embeds = {"text": text, "mask": mask}
        return embeds if self.guidance is None else embeds | {"guidance": self.guidance}


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], scale: float) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]."""
    guidance = embeds.get("guidance")
    out: Tensor = net(
        x,
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds["mask"],
        timestep=torch.full((len(x),), t * scale, device=x.device),
        guidance=None if guidance is None else guidance * net.config.guidance_embeds_scale,
        return_dict=False,
    )[0]
    return out[:, : x.shape[1]]
