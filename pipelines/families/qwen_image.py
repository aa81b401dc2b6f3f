"""qwen-image: Qwen-Image and Qwen-Image-Edit: a joint-attention flow transformer, prompts through Qwen2.5-VL.

A QwenImagePipeline, QwenImageEditPipeline or QwenImageEditPlusPipeline folder. The edit models need an `image`, and
Plus takes two more (`image_2`, `image_3`; a prompt calls them Picture 1 to 3); pictures of any size are brought to
the sizes of the training. Guidance is plain: diffusers also shortens each token of the guided velocity to the
length that it has without guidance; `cfg-rescale` comes near.
Licence of the published weights: Apache-2.0.

Embeds: `text` [B,L,D], `mask` [B,L] where the prompts differ in length, and `image` ... [B,C,h,w], latents whose
tokens join the sequence. An edit model's prompts are `ids` and `mask` until the pictures are attached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..card import read_card
from ..paths import flow
from ..protocols import Defaults, Limits, Model, Schedule
from ..weights import read_json
from ._codecs import StillCodec
from ._common import Checkpoint, Text, flow_schedule
from ._denoiser import NetDenoiser
from ._opened import open_parts
from ._qwen_edit import PICTURES, Editor, load_shrinker
from ._qwen_edit import TOKENS as EDIT_TOKENS

SCHEDULE = "flow-shift"
TOKENS = 512


@dataclass(frozen=True)
class QwenImage:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline")

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        edits = read_json(folder / "model_index.json")["_class_name"] != "QwenImagePipeline"
        opened = open_parts(folder, dtype, device, {"processor": None} if edits else None)
        net, codec, pipe = opened.net("transformer"), StillCodec(opened.net("vae")), opened.pipe
        shift, dynamic = flow_schedule(opened.scheduler, folder)
        editor = Editor(pipe, load_shrinker(folder), codec) if edits else None
        words = Text(pipe.tokenizer, TOKENS if editor is None else EDIT_TOKENS)
        card = read_card(folder, codec.channels)
        side = 1328 if editor is None else 1024
        defaults = card.over(Defaults(side, side, 50, 4.0, "ddim", SCHEDULE))
        multiple = 2 * codec.factor

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text, mask = pipe.encode_prompt(prompt=list(prompts), max_sequence_length=TOKENS)
            return {"text": text} if mask is None else {"text": text, "mask": mask}

        def schedule(width: int, height: int) -> Schedule:
            return replace(shift, tokens=(width // multiple) * (height // multiple)) if dynamic else shift

        return Checkpoint(
            name=card.name or folder.name,
            family="qwen-image",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(multiple, multiple, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=embed if editor is None else editor.ids,
            schedule_id=SCHEDULE,
            schedule_for=schedule,
            parts=opened.parts,
            card=card,
            needs=() if editor is None else editor.pictures[:1],
            accepts=() if editor is None else editor.pictures[1:],
            joint=editor,
        )


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]; a token is 2x2 cells."""
    cells = [
        F.pixel_unshuffle(x, 2),
        *(F.pixel_unshuffle(embeds[name], 2) for name in PICTURES if name in embeds),
    ]
    out = net(
        hidden_states=torch.cat([image.flatten(2).mT for image in cells], dim=1),
        timestep=torch.full((len(x),), t, device=x.device, dtype=x.dtype),
        encoder_hidden_states=embeds["text"],
        encoder_hidden_states_mask=embeds.get("mask"),
        img_shapes=[[(1, *image.shape[2:]) for image in cells]] * len(x),
        return_dict=False,
    )[0]
    own: Tensor = out[:, : cells[0].shape[2] * cells[0].shape[3]]
    return F.pixel_shuffle(own.mT.unflatten(2, cells[0].shape[2:]), 2)
