"""flux: FLUX.1 dev, schnell and anything in their layout: a flow transformer over packed latents.

A FluxPipeline folder: FluxTransformer2DModel, AutoencoderKL, CLIPTextModel (pooled), T5EncoderModel and two
tokenizers of any class. Latents are unpacked [B,C,h,w] everywhere above this file; 2x2 packing happens here.

Embeds: `text` [B,L,D], `pooled` [B,P], `guidance` [B] where the net was distilled for it (dev); in the variants
`context` [B,C,h,w], latents of a reference image whose tokens join the sequence (Kontext: first image id 1), or
`beside` [B,K,h,w], channels that go in beside those of x (Fill, Canny, Depth).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..errors import BadInput, BadWeights
from ..paths import flow
from ..protocols import Defaults, Limits, Schedule
from ..schedules.flow_shift import FlowShift
from ._common import Checkpoint, Codec, Text, flow_schedule
from ._denoiser import NetDenoiser
from ._parts import load_part, load_tokenizer, scheduler_config

MOST_TOKENS = 512
SCHEDULE = "flow-shift"


@dataclass(frozen=True)
class Flux:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("FluxPipeline",)
    beside: Callable[[Codec], int] = lambda codec: 0
    """Channels that go into the network beside those of the latents."""
    usual: tuple[int, float] | None = None
    """Steps and guidance of a variant."""

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Checkpoint:
        shift, dynamic = flow_schedule(scheduler_config(folder), folder)
        tokenizers = load_tokenizer(folder, "tokenizer"), load_tokenizer(folder, "tokenizer_2")
        parts = {
            "transformer": load_part(
                folder, "transformer", "diffusers.FluxTransformer2DModel", dtype, device
            ),
            "text_encoder": load_part(folder, "text_encoder", "transformers.CLIPTextModel", dtype, device),
            "text_encoder_2": load_part(
                folder, "text_encoder_2", "transformers.T5EncoderModel", dtype, device
            ),
            "vae": load_part(folder, "vae", "diffusers.AutoencoderKL", dtype, device),
        }
        net, codec = parts["transformer"].net, Codec(parts["vae"].net)
        card = read_card(folder, codec.channels)
        wanted = 4 * (codec.channels + self.beside(codec))
        if net.config.in_channels != wanted:
            raise BadWeights(
                f"{folder}: {net.config.in_channels} channels go in, {wanted} are those of a {self.pipelines[0]} "
                f"whose VAE makes {codec.channels}; model_index.json names the wrong pipeline"
            )
        pooled = Text.for_clip(tokenizers[0], parts["text_encoder"].net)
        words = Text(tokenizers[1], min(MOST_TOKENS, int(tokenizers[1].model_max_length)))
        defaults = card.over(_defaults(net.config.guidance_embeds, shift, dynamic, self.usual))
        guidance = torch.tensor([defaults.guidance], device=device) if net.config.guidance_embeds else None
        encoder = _Encoder(pooled, words, parts["text_encoder"].net, parts["text_encoder_2"].net, guidance)
        multiple = 2 * codec.factor

        def schedule(width: int, height: int) -> Schedule:
            return replace(shift, tokens=(width // multiple) * (height // multiple)) if dynamic else shift

        return Checkpoint(
            name=card.name or folder.name,
            family="flux",
            denoise=NetDenoiser(net, flow(), dtype, "flow", _velocity),
            limits=Limits(multiple, multiple, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=encoder,
            schedule_id=SCHEDULE,
            schedule_for=schedule,
            parts=parts,
            card=card,
        )


def _defaults(distilled: bool, shift: FlowShift, dynamic: bool, usual: tuple[int, float] | None) -> Defaults:
    """Of dev, of a plain flow model, and of schnell, which alone has neither guidance nor a shift."""
    few = not distilled and not dynamic and shift.shift == 1
    steps, guidance = usual or (4 if few else 28, 3.5)
    return Defaults(1024, 1024, steps, guidance if distilled else 1.0, "ddim", SCHEDULE)


@dataclass(frozen=True)
class _Encoder:
    pooled: Text
    words: Text
    clip: Any
    t5: Any
    guidance: Tensor | None

    def __call__(self, prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        embeds = {
            "text": self.t5(self.words.ids(prompts)[0].to(self.t5.device))[0],
            "pooled": self.clip(self.pooled.ids(prompts)[0].to(self.clip.device)).pooler_output,
        }
        return embeds if self.guidance is None else embeds | {"guidance": self.guidance}


def _velocity(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """eps - x0 [N,C,h,w] at x [N,C,h,w]."""
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        raise BadInput(
            "latents", f"latents of {height}x{width} cells; FLUX packs 2x2 cells, both must be even"
        )
    if "beside" in embeds:
        beside = embeds["beside"]
        if beside.shape[2:] != x.shape[2:]:
            raise BadInput("pictures", "the pictures must have the size of the result; resize or crop them")
        x = torch.cat([x, beside], dim=1)
    tokens, ids = _pack(x), _positions(height, width, 0, x.device)
    own = tokens.shape[1]
    if "context" in embeds:
        context = embeds["context"]
        tokens = torch.cat([tokens, _pack(context)], dim=1)
        ids = torch.cat([ids, _positions(context.shape[2], context.shape[3], 1, x.device)])
    v = net(
        hidden_states=tokens,
        encoder_hidden_states=embeds["text"],
        pooled_projections=embeds["pooled"],
        timestep=torch.full((len(tokens),), t, device=x.device, dtype=x.dtype),
        guidance=embeds.get("guidance"),
        img_ids=ids,
        txt_ids=ids.new_zeros(embeds["text"].shape[1], 3),
        return_dict=False,
    )[0]
    return _unpack(v[:, :own], height, width)


def _pack(x: Tensor) -> Tensor:
    """[B,C,h,w] to tokens [B, h/2 * w/2, 4C], each a 2x2 patch, channel-major."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def _unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `_pack`."""
    batch, _, features = tokens.shape
    x = tokens.reshape(batch, height // 2, width // 2, features // 4, 2, 2)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, features // 4, height, width)


def _positions(height: int, width: int, image: int, device: torch.device) -> Tensor:
    """Rotary ids [h/2 * w/2, 3] of the tokens: image number, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    ids = torch.stack([torch.full_like(rows, image), rows, columns], dim=-1).reshape(-1, 3)
    return ids.to(device, torch.float32)
