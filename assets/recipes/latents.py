"""Latents of a pool, encoded once and kept in half precision beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .pool import Pool


def encoded(work: Path, vae: AutoencoderKL, data: Pool, name: str) -> Tensor:
    """Normalised latents [N,16,h,w], float16: (mean - shift) * scale, as diffusers pipelines use them."""
    file = work / f"latents-{name}-{len(data)}.pt"
    if not file.exists():
        pieces = []
        with torch.inference_mode():
            for at in range(0, len(data), 64):
                x = data.batch(torch.arange(at, min(at + 64, len(data)))) * 2 - 1
                z = (vae.encode(x).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
                pieces.append(z.half())
        torch.save(torch.cat(pieces).clone(), file)
    return torch.load(file, weights_only=True)
