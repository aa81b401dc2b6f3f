"""Codecs beside the usual AutoencoderKL: images [B,3,H,W] in 0..1 to standardised latents and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._common import check_multiple, shown


@dataclass(frozen=True)
class DcCodec:
    """An AutoencoderDC, which has no posterior: SANA."""

    vae: Any

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.vae.config.encoder_block_out_channels) - 1))

    @property
    def channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self.vae.device, self.vae.dtype) / float(self.vae.config.scaling_factor)
        with torch.no_grad():
            return shown(self.vae.decode(z, return_dict=False)[0], self.vae.dtype)

    def encode(self, images: Tensor) -> Tensor:
        check_multiple(images, self.factor)
        pixels = images.to(self.vae.device, self.vae.dtype) * 2 - 1
        with torch.no_grad():
            z: Tensor = self.vae.encode(pixels, return_dict=False)[0]
        return (z * float(self.vae.config.scaling_factor)).float()


@dataclass(frozen=True)
class VqCodec:
    """A VQModel used without its codebook, as Kandinsky uses MoVQ: latents are neither rounded nor scaled."""

    vae: Any

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self.vae.device, self.vae.dtype)
        with torch.no_grad():
            images = self.vae.decode(z, force_not_quantize=True, return_dict=False)[0]
        return shown(images, self.vae.dtype)

    def encode(self, images: Tensor) -> Tensor:
        check_multiple(images, self.factor)
        pixels = images.to(self.vae.device, self.vae.dtype) * 2 - 1
        with torch.no_grad():
            z: Tensor = self.vae.encode(pixels, return_dict=False)[0]
        return z.float()


@dataclass(frozen=True)
class Flux2Codec:
    """An AutoencoderKLFlux2: each 2x2 cells become one with four times the channels, then standardised one by one."""

    vae: Any

    @property
    def factor(self) -> int:
        return int(2 ** len(self.vae.config.block_out_channels))

    @property
    def channels(self) -> int:
        return 4 * int(self.vae.config.latent_channels)

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        z = latents.to(self.vae.device, self.vae.dtype) * std + mean
        with torch.no_grad():
            images = self.vae.decode(F.pixel_shuffle(z, 2), return_dict=False)[0]
        return shown(images, self.vae.dtype)

    def encode(self, images: Tensor) -> Tensor:
        check_multiple(images, self.factor)
        mean, std = self._statistics()
        pixels = images.to(self.vae.device, self.vae.dtype) * 2 - 1
        with torch.no_grad():
            z = F.pixel_unshuffle(self.vae.encode(pixels).latent_dist.mean, 2)
        return ((z - mean) / std).float()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and spread, [C,1,1], that its batch norm collected in training."""
        norm = self.vae.bn
        std = (norm.running_var + self.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean[:, None, None].to(self.vae.dtype), std[:, None, None].to(self.vae.dtype)


@dataclass(frozen=True)
class StillCodec:
    """A video autoencoder used for single pictures, each a clip of one frame: Qwen-Image."""

    vae: Any

    @property
    def factor(self) -> int:
        return int(2 ** len(self.vae.config.temperal_downsample))

    @property
    def channels(self) -> int:
        return int(self.vae.config.z_dim)

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        z = latents.to(self.vae.device, self.vae.dtype) * std + mean
        with torch.no_grad():
            images = self.vae.decode(z.unsqueeze(2), return_dict=False)[0][:, :, 0]
        return shown(images, self.vae.dtype)

    def encode(self, images: Tensor) -> Tensor:
        check_multiple(images, self.factor)
        mean, std = self._statistics()
        pixels = images.to(self.vae.device, self.vae.dtype) * 2 - 1
        with torch.no_grad():
            z = self.vae.encode(pixels.unsqueeze(2)).latent_dist.mean[:, :, 0]
        return ((z - mean) / std).float()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of each channel, [C,1,1]."""
        table = [self.vae.config.latents_mean, self.vae.config.latents_std]
        mean, std = torch.tensor(table, device=self.vae.device, dtype=self.vae.dtype)[..., None, None]
        return mean, std
