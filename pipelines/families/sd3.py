"""sd3: Stable Diffusion 3 and 3.5: a joint-attention transformer on a flow path, prompts through two CLIPs and T5.

A StableDiffusion3Pipeline folder. Each of the three text encoders may be missing (null in model_index.json), T5 most
often: zeros stand for what it would say, as in training, which left encoders out at random. No prompt weights, skipped
layers or IP adapters. A 3.5 Turbo folder looks like 3.5 Large: ask it for 4 steps and guidance 1.
Licence of the published weights: Stability AI Community License.

Embeds: `text` [B,77 + 256,D], CLIP's tokens and T5's, `pooled` [B,P].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..card import read_card
from ..errors import BadWeights
from ..paths import flow
from ..protocols import Defaults, Limits, Model
from ._common import Checkpoint, Codec, Text, flow_schedule
from ._denoiser import NetDenoiser
from ._opened import Opened, open_parts
from ._schedules import BothEnds

SCHEDULE = "flow-shift"
CLIP_TOKENS = 77
T5_TOKENS = 256


@dataclass(frozen=True)
class Sd3:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("StableDiffusion3Pipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, codec = opened.net("transformer"), Codec(opened.net("vae"))
        shift, dynamic = flow_schedule(opened.scheduler, folder)
        if dynamic:
            raise BadWeights(f"{folder}: SD 3 with use_dynamic_shifting is not supported; set it to false")
        own, encoder = BothEnds(shift.shift), _encoder(opened)
        card = read_card(folder, codec.channels)
        multiple = codec.factor * net.config.patch_size
        side = net.config.sample_size * codec.factor
        guidance = 7.0 if net.config.qk_norm is None else 4.5  # only 3.5 normalises queries and keys
        defaults = card.over(Defaults(side, side, 28, guidance, "ddim", SCHEDULE))

        return Checkpoint(
            name=card.name or folder.name,
            family="sd3",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(
                multiple, multiple, min(4096, net.config.pos_embed_max_size * multiple), encoder.words.limit
            ),
            defaults=defaults,
            codec=codec,
            text=encoder.words,
            embed=encoder,
            schedule_id=SCHEDULE,
            schedule_for=lambda width, height: own,
            parts=opened.parts,
            card=card,
        )


@dataclass(frozen=True)
class _Encoder:
    """What is None says zeros. `width` and `pooled` are the network's."""

    clips: tuple[tuple[Text, Any] | None, ...]
    t5: tuple[Text, Any] | None
    width: int
    pooled: int
    device: torch.device

    @property
    def words(self) -> Text:
        """The longest prompt that some encoder reads whole."""
        return next(pair[0] for pair in (self.t5, *self.clips) if pair is not None)

    def __call__(self, prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        # a missing CLIP is as wide as what the others leave of the pooled vector
        spare = self.pooled - sum(pair[1].config.projection_dim for pair in self.clips if pair is not None)
        said, pooled = [], []
        for pair in self.clips:
            if pair is None:
                said.append(self._zeros(len(prompts), CLIP_TOKENS, spare))
                pooled.append(self._zeros(len(prompts), spare))
                spare = 0
            else:
                words, clip = pair
                found = clip(words.ids(prompts)[0].to(self.device), output_hidden_states=True)
                said.append(found.hidden_states[-2])
                pooled.append(found.text_embeds)
        clip_text = torch.cat(said, dim=-1)
        clip_text = F.pad(clip_text, (0, self.width - clip_text.shape[-1]))
        if self.t5 is None:
            t5_text = self._zeros(len(prompts), T5_TOKENS, self.width)
        else:
            words, t5 = self.t5
            t5_text = t5(words.ids(prompts)[0].to(self.device))[0]
        return {"text": torch.cat([clip_text, t5_text], dim=1), "pooled": torch.cat(pooled, dim=-1)}

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device)


def _encoder(opened: Opened) -> _Encoder:
    pipe, config = opened.pipe, opened.net("transformer").config
    clips = tuple(
        None if clip is None or tokenizer is None else (Text.for_clip(tokenizer, clip), clip)
        for tokenizer, clip in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    )
    t5 = None
    if pipe.text_encoder_3 is not None and pipe.tokenizer_3 is not None:
        t5 = Text(pipe.tokenizer_3, T5_TOKENS), pipe.text_encoder_3
    if t5 is None and not any(clips):
        raise BadWeights(f"{opened.folder}: model_index.json names no text encoder; at least one is needed")
    return _Encoder(clips, t5, config.joint_attention_dim, config.pooled_projection_dim, opened.device)


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]."""
    out: Tensor = net(
        hidden_states=x,
        timestep=torch.full((len(x),), 1000 * t, device=x.device),
        encoder_hidden_states=embeds["text"],
        pooled_projections=embeds["pooled"],
        return_dict=False,
    )[0]
    return out
