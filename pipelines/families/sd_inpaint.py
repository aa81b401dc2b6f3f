"""sd_inpaint: Stable Diffusion 1.x and 2.x for inpainting: a UNet that sees the picture and the hole in it.

A StableDiffusionInpaintPipeline folder with a UNet of 9 channels: latents, the mask (1 = repaint) in latent cells,
and the latents of the picture with a grey hole. Sampling begins at pure noise. Without pictures all is hole: text to
image. With a UNet of 4 channels it is plain Stable Diffusion, which sees no pictures. The picture's latents are the
mean of the VAE's posterior.

Licence of the published weights: CreativeML Open RAIL-M (1.x), Open RAIL++-M (2.x).
Embeds: `text` [B,L,D], `beside` [B,1+C,h,w].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as Folder
from typing import Any

import torch

from ..protocols import Model
from ._denoiser import NetDenoiser
from ._unets import WithoutPictures, check_channels, inpainting, open_sd, read_noise, sd_on_vp


@dataclass(frozen=True)
class SdInpaint:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("StableDiffusionInpaintPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        noise = read_noise(folder)
        opened = open_sd(folder, dtype, device)
        plain = sd_on_vp(opened, "sd_inpaint", noise)
        if opened.net.config.in_channels == opened.codec.channels:
            return plain
        check_channels(opened.net, opened.codec, 1 + opened.codec.channels, folder)
        call = WithoutPictures(opened.codec, noise.path)
        denoise = NetDenoiser(opened.net, noise.path, opened.dtype, noise.kind, call)
        return replace(plain, denoise=denoise, accepts=("image", "mask"), attached=inpainting(opened.codec))
