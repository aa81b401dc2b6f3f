"""hunyuan_dit: HunyuanDiT 1.0 to 1.2: a transformer on a VP path, prompts in Chinese or English through CLIP and mT5.

A HunyuanDiTPipeline folder. The network, which predicts v, also gives a variance, which is dropped. Up to 1.1 it is
told the size of the picture, the size 1024x1024 of its original, no crop, and style 0. Sizes are used as given, where
diffusers picks the nearest of a table. Published folders name the DDPM sampler; DPM++ 2M stands in for it.
Licence of the published weights: Tencent Hunyuan Community licence.

Embeds: `text` [B,77,D], `mask` [B,77] of CLIP; `text_2` [B,256,E], `mask_2` [B,256] of mT5.
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
from ._opened import open_parts

ORIGINAL = 1024.0
"""Height and width in pixels of the picture that the network is told to have been cut from."""
GRID = 64
"""Cells along one side of the square in which the positions of every picture lie."""


@dataclass(frozen=True)
class HunyuanDiT:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("HunyuanDiTPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec, pipe = opened.net("transformer"), Codec(opened.net("vae")), opened.pipe
        opened.net("text_encoder_2")
        lengths = int(net.config.text_len), int(net.config.text_len_t5)
        words = Text(pipe.tokenizer_2, lengths[1])
        kind = str(opened.scheduler.get("prediction_type", "v_prediction"))
        if kind not in ESTIMATES:
            raise BadWeights(f"{folder}: prediction_type is {kind!r}; known are {', '.join(ESTIMATES)}")
        path = vp_path(opened.scheduler, kind, folder)
        card = read_card(folder, codec.channels)
        side = net.config.sample_size * codec.factor
        defaults = card.over(Defaults(side, side, 50, 5.0, "dpmpp-2m", "uniform"))
        multiple, own = codec.factor * net.config.patch_size, spacing(opened.scheduler, folder)

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            found = [
                pipe.encode_prompt(
                    list(prompts),
                    dtype=dtype,
                    do_classifier_free_guidance=False,
                    max_sequence_length=length,
                    text_encoder_index=i,
                )
                for i, length in enumerate(lengths)
            ]
            (text, _, mask, _), (text_2, _, mask_2, _) = found
            return {"text": text, "mask": mask, "text_2": text_2, "mask_2": mask_2}

        return Checkpoint(
            name=card.name or folder.name,
            family="hunyuan_dit",
            denoise=NetDenoiser(net, path, dtype, kind, partial(_output, path=path, factor=codec.factor)),
            limits=Limits(multiple, 2 * multiple, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=embed,
            schedule_id="uniform",
            schedule_for=lambda width, height: own,
            parts=opened.parts,
            card=card,
        )


def _output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path, factor: int) -> Tensor:
    """What the network predicts [N,C,h,w] at x."""
    height, width = x.shape[2] * factor, x.shape[3] * factor
    sizes = x.new_tensor([ORIGINAL, ORIGINAL, height, width, 0, 0])
    out: Tensor = net(
        x,
        torch.full((len(x),), step_of(path, t), device=x.device, dtype=x.dtype),
        encoder_hidden_states=embeds["text"],
        text_embedding_mask=embeds["mask"],
        encoder_hidden_states_t5=embeds["text_2"],
        text_embedding_mask_t5=embeds["mask_2"],
        image_meta_size=sizes.expand(len(x), 6).contiguous(),
        style=torch.zeros(len(x), dtype=torch.long, device=x.device),
        image_rotary_emb=_rotary(net, x),
        return_dict=False,
    )[0]
    return out[:, : x.shape[1]]


def _rotary(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the positions, those of the picture lying centred in the square grid."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    patch = net.config.patch_size
    grid = x.shape[2] // patch, x.shape[3] // patch
    region = get_resize_crop_region_for_grid(grid, GRID // patch)
    found: tuple[Tensor, Tensor] = get_2d_rotary_pos_embed(
        net.inner_dim // net.num_heads, region, grid, device=x.device, output_type="pt"
    )
    return found
