"""cogview3: CogView3-Plus: a transformer over joined text and picture tokens on a VP path, prompts through T5.

A CogView3PlusPipeline folder; the network predicts v. It is told the picture's size in pixels, as that of the original
and of the target, and no crop. An empty prompt to avoid stands for no text at all, as if none had been given. DDIM
stands in for the folder's own sampler.
Licence of the published weights: Apache-2.0.

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
from ._opened import open_parts

TOKENS = 224


@dataclass(frozen=True)
class CogView3:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("CogView3PlusPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("transformer"), Codec(opened.net("vae"))
        words = Text(opened.pipe.tokenizer, TOKENS)
        kind = str(opened.scheduler.get("prediction_type", "v_prediction"))
        if kind not in ESTIMATES:
            raise BadWeights(f"{folder}: prediction_type is {kind!r}; known are {', '.join(ESTIMATES)}")
        path = vp_path(opened.scheduler, kind, folder)
        card = read_card(folder, codec.channels)
        side = net.config.sample_size * codec.factor
        defaults = card.over(Defaults(side, side, 50, 5.0, "ddim", "uniform"))
        multiple, own = codec.factor * net.config.patch_size, spacing(opened.scheduler, folder)

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, _ = opened.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
            if negative:
                given = torch.tensor([bool(prompt) for prompt in prompts], device=text.device)
                text = text * given[:, None, None]
            return {"text": text}

        return Checkpoint(
            name=card.name or folder.name,
            family="cogview3",
            denoise=NetDenoiser(net, path, dtype, kind, partial(_output, path=path, factor=codec.factor)),
            limits=Limits(multiple, multiple, 4096, words.limit),
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
    size = torch.tensor([[x.shape[2] * factor, x.shape[3] * factor]], dtype=x.dtype, device=x.device)
    size = size.expand(len(x), 2).contiguous()
    out: Tensor = net(
        hidden_states=x,
        encoder_hidden_states=embeds["text"],
        timestep=torch.full((len(x),), step_of(path, t), device=x.device),
        original_size=size,
        target_size=size,
        crop_coords=torch.zeros_like(size),
        return_dict=False,
    )[0]
    return out
