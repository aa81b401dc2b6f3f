"""sd: Stable Diffusion 1.x and 2.x, and anything in their layout: a UNet on a VP path.

A StableDiffusionPipeline folder (an Img2Img pipeline is the same one): UNet2DConditionModel (predicting eps, v or the
sample), AutoencoderKL, CLIPTextModel and its tokenizer. The noise table comes from the settings of whichever
scheduler is named, and so do few steps without guidance for a distilled network (SD-Turbo).

Licence of the published weights: CreativeML Open RAIL-M (1.x), Open RAIL++-M (2.x); Stability's own for SD-Turbo.
Embeds: `text` [B,L,D], and `guidance` [B] where the UNet was distilled to be told it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch

from ..protocols import Model
from ._unets import check_channels, open_sd, read_noise, sd_on_vp


@dataclass(frozen=True)
class Sd:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        noise = read_noise(folder)
        opened = open_sd(folder, dtype, device)
        check_channels(opened.net, opened.codec, 0, folder)
        return sd_on_vp(opened, "sd", noise)
