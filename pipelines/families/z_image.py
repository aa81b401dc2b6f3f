"""z-image: Z-Image and Z-Image-Turbo: one stream of text and picture tokens on a flow path, prompts through Qwen3.

A ZImagePipeline folder. The network takes lists of pictures and texts, so that texts of any length share a call; it
counts time from noise to data and predicts x0 - eps, both turned round here. A guidance scale here is that of diffusers
plus one: theirs adds to the answer to the prompt, and 0 is off.
Licence of the published weights: Apache-2.0.

Embeds: `text` [B,L,D], and `mask` [B,L] where the prompts differ in length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..card import read_card
from ..paths import flow
from ..protocols import Defaults, Limits, Model, Schedule
from ._chat import chat_text
from ._common import Checkpoint, Codec, flow_schedule
from ._denoiser import NetDenoiser
from ._opened import open_parts

SCHEDULE = "flow-shift"
TOKENS = 512


@dataclass(frozen=True)
class ZImage:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("ZImagePipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("transformer"), Codec(opened.net("vae"))
        shift, dynamic = flow_schedule(opened.scheduler, folder)
        words = chat_text(opened.pipe.tokenizer, TOKENS, partial(_chat, opened.pipe.tokenizer))
        card = read_card(folder, codec.channels)
        # Turbo is told from the model that it was distilled from by its smaller shift, 3 instead of 6
        steps, guidance = (8, 1.0) if shift.shift <= 3 else (50, 5.0)
        defaults = card.over(Defaults(1024, 1024, steps, guidance, "ddim", SCHEDULE))
        multiple = 2 * codec.factor

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            rows, _ = opened.pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
            text = pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([len(row) for row in rows])
            if bool((lengths == lengths[0]).all()):
                return {"text": text}
            return {"text": text, "mask": (torch.arange(text.shape[1]) < lengths[:, None]).to(text.device)}

        def schedule(width: int, height: int) -> Schedule:
            return replace(shift, tokens=(width // multiple) * (height // multiple)) if dynamic else shift

        return Checkpoint(
            name=card.name or folder.name,
            family="z-image",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(multiple, multiple, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=embed,
            schedule_id=SCHEDULE,
            schedule_for=schedule,
            parts=opened.parts,
            card=card,
        )


def _chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as the pipeline asks it."""
    asked: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    return asked


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]."""
    texts = list(embeds["text"])
    if "mask" in embeds:
        texts = [text[kept] for text, kept in zip(texts, embeds["mask"], strict=True)]
    out = net(
        list(x.unsqueeze(2)),  # one frame
        torch.full((len(x),), 1 - t, device=x.device),
        texts,
        return_dict=False,
    )[0]
    return -torch.stack(list(out)).squeeze(2)
