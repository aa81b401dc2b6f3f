"""latent_consistency: LCM: Stable Diffusion's layout, a UNet of few steps that is told the guidance scale.

A LatentConsistencyModelPipeline folder (LCM Dreamshaper v7 and its kin). The scale goes in as an embedding of
guidance - 1, so each step is one evaluation and there is no negative prompt. 1 to 8 steps of the sampler lcm, whose
times are picked from those of the distillation. LCM-LoRAs need no such UNet and are not this family.

Licence of the published weights: MIT (Dreamshaper v7), over Stable Diffusion's Open RAIL-M.
Embeds: `text` [B,L,D], `guidance` [B] in diffusers' counting, 1 = none, trained for 3..13.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch

from ..errors import BadWeights
from ..protocols import Model
from ._unets import check_channels, open_sd, read_noise, sd_on_vp


@dataclass(frozen=True)
class LatentConsistency:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("LatentConsistencyModelPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        noise = read_noise(folder)
        opened = open_sd(folder, dtype, device)
        check_channels(opened.net, opened.codec, 0, folder)
        if opened.net.config.time_cond_proj_dim is None:
            raise BadWeights(
                f"{folder}: the UNet takes no embedded guidance (time_cond_proj_dim is null in its config.json); "
                "name the pipeline StableDiffusionPipeline in model_index.json"
            )
        return sd_on_vp(opened, "latent_consistency", noise)
