"""flux2: FLUX.2 dev (prompts through Mistral 3) and FLUX.2 klein (Qwen 3): a flow transformer over 16 px tokens.

A Flux2Pipeline or Flux2KleinPipeline folder. dev takes its guidance as an input of the network, undistilled klein
through a negative prompt, distilled klein needs none. Up to four pictures (`image`, `image_2` ...) of any size in
whole tokens (16 px), best of at most a megapixel each, can be edited or taken over from. No rewriting of prompts.
Licence of the published weights: FLUX [dev] Non-Commercial License for dev and klein 9B, Apache-2.0 for klein 4B.

Embeds: `text` [B,512,D], `guidance` [B] for dev, and `image` ... [B,C,h,w], latents whose tokens join the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..paths import flow
from ..protocols import Defaults, Limits, Model, Path, Schedule
from ..schedules.flow_shift import FlowShift
from ..weights import read_json
from ._chat import chat_text
from ._codecs import Flux2Codec
from ._common import Checkpoint, flow_schedule
from ._denoiser import NetDenoiser
from ._opened import open_parts
from ._parts import load_processor_tokenizer

SCHEDULE = "flow-shift"
TOKENS = 512
PICTURES = ("image", "image_2", "image_3", "image_4")
APART = 10
"""Between the image numbers of a result and of the pictures that it is made from."""


@dataclass(frozen=True)
class Flux2:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("Flux2Pipeline", "Flux2KleinPipeline")

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        klein = read_json(folder / "model_index.json")["_class_name"] == "Flux2KleinPipeline"
        own = {} if klein else {"tokenizer": load_processor_tokenizer(folder, "tokenizer")}
        opened = open_parts(folder, dtype, device, own)
        net, codec, pipe = opened.net("transformer"), Flux2Codec(opened.net("vae")), opened.pipe
        shift, dynamic = flow_schedule(opened.scheduler, folder)
        words = chat_text(pipe.tokenizer, TOKENS, partial(_asked_klein if klein else _asked, pipe))
        card = read_card(folder, codec.channels)
        few = klein and pipe.config.is_distilled
        defaults = card.over(Defaults(1024, 1024, 4 if few else 50, 1.0 if few else 4.0, "ddim", SCHEDULE))
        guidance = torch.tensor([defaults.guidance], device=device) if net.config.guidance_embeds else None

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            text = pipe.encode_prompt(prompt=list(prompts), max_sequence_length=TOKENS)[0]
            return {"text": text} if guidance is None else {"text": text, "guidance": guidance}

        def schedule(width: int, height: int) -> Schedule:
            return _Times(width // codec.factor * (height // codec.factor)) if dynamic else shift

        return Checkpoint(
            name=card.name or folder.name,
            family="flux2",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(codec.factor, codec.factor, 2048, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=embed,
            schedule_id=SCHEDULE,
            schedule_for=schedule,
            parts=opened.parts,
            card=card,
            accepts=PICTURES,
            attached=lambda pictures: {name: codec.encode(picture) for name, picture in pictures.items()},
        )


@dataclass(frozen=True)
class _Times:
    """flow-shift, whose log-shift grows with the tokens and falls with the steps, as its makers measured."""

    tokens: int

    def __call__(self, steps: int, path: Path) -> list[float]:
        many = 0.00016927 * self.tokens + 0.45666666  # at 200 steps
        few = 8.73809524e-05 * self.tokens + 1.89833333  # at 10
        log_shift = many if self.tokens > 4300 else many + (steps - 200) * (many - few) / 190
        return FlowShift(shift=max(math.exp(log_shift), 0.01))(steps, path)


def _asked(pipe: Any, prompt: str) -> str:
    """The prompt as the pipeline of dev puts it to its text encoder."""
    said = (("system", pipe.system_message), ("user", prompt))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    return str(pipe.tokenizer.apply_chat_template(messages, tokenize=False))


def _asked_klein(pipe: Any, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return str(
        pipe.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    )


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]."""
    images = [x, *(embeds[name] for name in PICTURES if name in embeds)]
    ids = torch.cat([_positions(image, APART * i) for i, image in enumerate(images)])
    words = torch.arange(embeds["text"].shape[1], device=x.device)
    out = net(
        hidden_states=torch.cat([image.flatten(2).mT for image in images], dim=1),
        encoder_hidden_states=embeds["text"],
        timestep=torch.full((len(x),), t, device=x.device, dtype=x.dtype),
        guidance=embeds.get("guidance"),
        img_ids=ids,
        txt_ids=torch.cat([words.new_zeros(len(words), 3), words[:, None]], dim=1),
        return_dict=False,
    )[0]
    own: Tensor = out[:, : x.shape[2] * x.shape[3]]
    return own.mT.reshape(x.shape)


def _positions(image: Tensor, number: int) -> Tensor:
    """Rotary ids [h * w, 4] of the tokens: image number, row, column, word."""
    rows, columns = torch.meshgrid(
        *(torch.arange(n, device=image.device) for n in image.shape[2:]), indexing="ij"
    )
    blank = torch.zeros_like(rows)
    return torch.stack([blank + number, rows, columns, blank], dim=-1).reshape(-1, 4)
