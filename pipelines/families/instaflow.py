"""instaflow: InstaFlow and 2-Rectified Flow: Stable Diffusion's layout, a UNet on a straight flow path.

A RectifiedFlowPipeline folder, which is how these are published: the UNet says x0 - eps at step 1000 t, and the
scheduler that the folder names is not used. InstaFlow makes pictures in exactly 1 step without guidance, the
default here; nothing tells its folder from that of 2-Rectified Flow, which wants up to 25 steps and a guidance of 1.5.
A StableDiffusionPipeline folder with a FlowMatchEulerDiscreteScheduler is a flow too, and by diffusers' convention its
UNet says eps - x0. No pipeline of diffusers runs either.

Licence of the published weights: CC BY-NC 4.0.
Embeds: `text` [B,L,D].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..errors import BadWeights
from ..paths import flow
from ..protocols import Defaults, Model, Schedule
from ..schedules.uniform import Uniform
from ._common import flow_schedule
from ._denoiser import NetDenoiser
from ._parts import scheduler_config
from ._unets import SCHEDULE, check_channels, native_size, open_sd, sd_checkpoint

FLOW = ["diffusers", "FlowMatchEulerDiscreteScheduler"]


@dataclass(frozen=True)
class InstaFlow:
    """The family: recognises and loads. It stands before `sd`, which takes every other scheduler."""

    pipelines: tuple[str, ...] = ("RectifiedFlowPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        name = index.get("_class_name")
        return name in self.pipelines or (
            name == "StableDiffusionPipeline" and index.get("scheduler") == FLOW
        )

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        config = scheduler_config(folder)
        straight = config.get("_class_name") != FLOW[1]
        own: Schedule = Uniform()
        if not straight:
            own, dynamic = flow_schedule(config, folder)
            if dynamic:
                raise BadWeights(
                    f"{folder}: use_dynamic_shifting counts tokens, a UNet has none; set it to false"
                )
        opened = open_sd(folder, dtype, device)
        check_channels(opened.net, opened.codec, 0, folder)
        width, height = native_size(opened.net, opened.codec.factor)
        steps, scale = (1, 1.0) if straight else (30, 7.5)
        call = partial(_velocity, sign=-1 if straight else 1)
        denoise = NetDenoiser(opened.net, flow(), dtype, "flow", call)
        defaults = Defaults(width, height, steps, scale, "ddim", SCHEDULE)
        return sd_checkpoint(opened, "instaflow", denoise, defaults, own)


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], sign: int) -> Tensor:
    """eps - x0 at x [N,C,h,w]."""
    steps = torch.full((len(x),), 1000 * t, device=x.device, dtype=torch.float32)
    out: Tensor = net(
        x,
        steps,
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds.get("mask"),
        return_dict=False,
    )[0]
    return sign * out
