"""pix2pix: InstructPix2Pix: Stable Diffusion whose UNet sees the picture that an instruction is to change.

A StableDiffusionInstructPix2PixPipeline folder with a UNet of 8 channels: latents, and those of the picture `image`,
not scaled. Plain cfg is the pipeline with an image guidance of 1; the guidance technique ip2p has both scales.

Licence of the published weights: MIT, over Stable Diffusion's CreativeML Open RAIL-M.
Embeds: `text` [B,L,D], `beside` [B,C,h,w].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..protocols import Model
from ._common import Attach, Codec
from ._unets import check_channels, open_sd, read_noise, sd_on_vp


@dataclass(frozen=True)
class Pix2Pix:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("StableDiffusionInstructPix2PixPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        noise = read_noise(folder)
        opened = open_sd(folder, dtype, device)
        check_channels(opened.net, opened.codec, opened.codec.channels, folder)
        plain = sd_on_vp(opened, "pix2pix", noise)
        return replace(plain, needs=("image",), attached=_unscaled(opened.codec))


def _unscaled(codec: Codec) -> Attach:
    """The picture's latents without the VAE's scaling factor, as the network was trained."""

    def attached(pictures: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"beside": codec.encode(pictures["image"]) / codec.scale}

    return attached
