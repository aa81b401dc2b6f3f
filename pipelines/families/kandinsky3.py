"""kandinsky3: Kandinsky 3: a UNet with attention on a VP path, prompts through FLAN-UL2, pictures through MoVQ.

A Kandinsky3Pipeline folder. Guidance is in the usual form, in which 1 is off: the pipeline's own scale is 1 less, so
its 3 is 4 here. An empty prompt to avoid stands for no text at all, as if none had been given. Published folders name
the DDPM sampler; DPM++ 2M stands in for it.
Licence of the published weights: Apache-2.0.

Embeds: `text` [B,L,D], `mask` [B,L], L as long as the longest prompt needs.
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
from ._codecs import VqCodec
from ._common import Checkpoint, Text, spacing, vp_path
from ._denoiser import ESTIMATES, NetDenoiser
from ._opened import open_parts

TOKENS = 128
SIDE = 1024


@dataclass(frozen=True)
class Kandinsky3:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("Kandinsky3Pipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("unet"), VqCodec(opened.net("movq"))
        words = Text(opened.pipe.tokenizer, TOKENS)
        kind = str(opened.scheduler.get("prediction_type", "epsilon"))
        if kind not in ESTIMATES:
            raise BadWeights(f"{folder}: prediction_type is {kind!r}; known are {', '.join(ESTIMATES)}")
        path = vp_path(opened.scheduler, kind, folder)
        card = read_card(folder, codec.channels)
        defaults = card.over(Defaults(SIDE, SIDE, 25, 4.0, "dpmpp-2m", "uniform"))
        multiple, own = 8 * codec.factor, spacing(opened.scheduler, folder)

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, _, mask, _ = opened.pipe.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, _cut_context=True
            )
            if negative:
                given = torch.tensor([bool(prompt) for prompt in prompts], device=text.device)
                text, mask = text * given[:, None, None], mask * given[:, None]
            return {"text": text, "mask": mask}

        return Checkpoint(
            name=card.name or folder.name,
            family="kandinsky3",
            denoise=NetDenoiser(net, path, dtype, kind, partial(_output, path=path)),
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


def _output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path) -> Tensor:
    """What the network predicts [N,C,h,w] at x."""
    out: Tensor = net(
        x,
        torch.full((len(x),), step_of(path, t), device=x.device),
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds["mask"],
        return_dict=False,
    )[0]
    return out
