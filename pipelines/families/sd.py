"""sd: Stable Diffusion 1.x and 2.x, and anything in their layout: a UNet on a VP path.

A StableDiffusionPipeline folder: UNet2DConditionModel (predicting eps, v or the sample), AutoencoderKL,
CLIPTextModel and its tokenizer. The noise table comes from the settings of whichever scheduler is named.

Embeds: `text` [B,L,D].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..errors import BadWeights
from ..paths import step_of
from ..protocols import Defaults, Limits, Model, Path
from ._common import Checkpoint, Codec, Text, spacing, vp_path
from ._denoiser import ESTIMATES, NetDenoiser
from ._parts import load_part, load_tokenizer, scheduler_config

SCHEDULE = "uniform"


@dataclass(frozen=True)
class Sd:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("StableDiffusionPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        config = scheduler_config(folder)
        kind = str(config.get("prediction_type", "epsilon"))
        if kind not in ESTIMATES:
            raise BadWeights(f"{folder}: prediction_type is {kind!r}; known are {', '.join(ESTIMATES)}")
        path = vp_path(config, kind, folder)
        tokenizer = load_tokenizer(folder, "tokenizer")
        parts = {
            "unet": load_part(folder, "unet", "diffusers.UNet2DConditionModel", dtype, device),
            "text_encoder": load_part(folder, "text_encoder", "transformers.CLIPTextModel", dtype, device),
            "vae": load_part(folder, "vae", "diffusers.AutoencoderKL", dtype, device),
        }
        net, clip, codec = parts["unet"].net, parts["text_encoder"].net, Codec(parts["vae"].net)
        _check_fit(net, codec, folder)
        words, card = Text.for_clip(tokenizer, clip), read_card(folder, codec.channels)
        size = net.config.sample_size
        height, width = (int(n) * codec.factor for n in ([size, size] if isinstance(size, int) else size))
        defaults = card.over(Defaults(width, height, 30, 7.5, "dpmpp-2m", SCHEDULE))
        own = spacing(config, folder)

        return Checkpoint(
            name=card.name or folder.name,
            family="sd",
            denoise=NetDenoiser(net, path, dtype, kind, partial(_output, path=path)),
            limits=Limits(codec.factor, codec.factor, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=_Encoder(words, clip),
            schedule_id=SCHEDULE,
            schedule_for=lambda width, height: own,
            parts=parts,
            card=card,
        )


def _check_fit(net: Any, codec: Codec, folder: Folder) -> None:
    if net.config.in_channels != codec.channels:
        raise BadWeights(
            f"{folder}: the UNet takes {net.config.in_channels} channels and the VAE makes {codec.channels}; "
            "inpainting and other extra-channel UNets are not supported"
        )
    if net.config.time_cond_proj_dim is not None:
        raise BadWeights(
            f"{folder}: UNets with an embedded guidance scale (LCM) are not supported; use the LoRA instead"
        )


@dataclass(frozen=True)
class _Encoder:
    words: Text
    clip: Any

    def __call__(self, prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        ids, mask = self.words.ids(prompts)
        masked = self.clip.config.to_dict().get("use_attention_mask", False)
        device = self.clip.device
        return {"text": self.clip(ids.to(device), attention_mask=mask.to(device) if masked else None)[0]}


def _output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path) -> Tensor:
    steps = torch.full((len(x),), step_of(path, t), device=x.device, dtype=torch.float32)
    out: Tensor = net(x, steps, encoder_hidden_states=embeds["text"], return_dict=False)[0]
    return out
