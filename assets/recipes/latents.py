"""Latents of a pool, encoded once and kept in half precision beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .pool import Pool


def encoded(work: Path, vae: AutoencoderKL, data: Pool, name: str) -> Tensor:
    """Normalised latents [N,16,h,w], float16: (mean - shift) * scale, as diffusers pipelines use them."""
    file = work / f"latents-{name}-{len(data)}.pt"
    if not file.exists():
        torch.save(encoded_pictures(vae, data.batch, len(data)), file)
    return torch.load(file, weights_only=True)


@torch.inference_mode()
def encoded_pictures(vae: AutoencoderKL, draw: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """The same of any pictures [B,3,H,W] in 0..1 that `draw` makes of the numbers 0 .. count - 1."""
    pieces = []
    for at in range(0, count, 64):
        x = draw(torch.arange(at, min(at + 64, count))) * 2 - 1
        z = (vae.encode(x).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
        pieces.append(z.half())
    return torch.cat(pieces).clone()
