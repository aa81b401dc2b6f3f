"""Latents and token ids of everything the tasks show, made once and kept beside the pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from ..still_life.scene import Scene
from .networks import TEXT_TOKENS
from .tasks import PICTURES, TASKS, bundle
from .text import tokenize

PIECE = 128
ROUNDS = 2
"""Different edits, views, holes and wordings of each scene."""


class Bank(NamedTuple):
    """`latents[picture]` [N,16,h,w] float16 and `ids[task]` [N,K,T] int16, row by row of the same scenes."""

    latents: dict[str, Tensor]
    ids: dict[str, Tensor]


def bank(
    work: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, scenes: Sequence[Scene], place: torch.device
) -> Bank:
    """The bank of these scenes on `place`; read from disk if it was made before."""
    file = work / f"crowded-bank-{len(scenes)}.pt"
    if not file.exists():
        codec = vae.to(place)
        latents: dict[str, list[Tensor]] = {name: [] for name in PICTURES}
        ids: dict[str, list[Tensor]] = {name: [] for name in TASKS}
        for at in range(0, len(scenes) * ROUNDS, PIECE):
            seeds = list(range(at, min(at + PIECE, len(scenes) * ROUNDS)))
            made = bundle([scenes[seed % len(scenes)] for seed in seeds], seeds, device=place)
            for name, rows in latents.items():
                rows.append(_encode(codec, made.pictures[name]))
            for name, texts in ids.items():
                filled = [TASKS[name].text.format(**words) for words in made.words]
                texts.append(tokenize(tokenizer, filled, TEXT_TOKENS).short()[:, None])
        torch.save(
            ({k: torch.cat(v) for k, v in latents.items()}, {k: torch.cat(v) for k, v in ids.items()}), file
        )
        vae.cpu()
    kept = torch.load(file, map_location=place, weights_only=True)
    return Bank(*kept)


@torch.inference_mode()
def _encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    z = vae.encode(pictures * 2 - 1).latent_dist.mean
    return ((z - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu()
