"""What families share: prompts to tokens, the image codec, batching of conditions, the opened checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..card import Card
from ..errors import BadInput, NotFinite
from ..lookup import with_defaults
from ..preview import Projection
from ..protocols import Cond, Defaults, Denoiser, Limits, Schedule
from ..weights import tensor_hash
from ._parts import Part, quiet


@dataclass(frozen=True)
class Text:
    """One tokenizer with its limit. Prompts come out as ids and mask, both [B, limit]."""

    tokenizer: Any
    limit: int

    @classmethod
    def for_clip(cls, tokenizer: Any, clip: Any) -> Text:
        """CLIP has as many tokens as position embeddings, whatever its tokenizer says."""
        return cls(tokenizer, min(int(tokenizer.model_max_length), int(clip.config.max_position_embeddings)))

    def ids(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.limit, truncation=True, return_tensors="pt"
        )
        return found.input_ids, found.attention_mask

    def dropped(self, prompt: str) -> str:
        """The end of the prompt that does not fit."""
        check_prompts([prompt])
        with quiet():
            if len(self.tokenizer(prompt).input_ids) <= self.limit:
                return ""
            kept = self.tokenizer(prompt, max_length=self.limit, truncation=True)
            if self.tokenizer.is_fast:
                ends = [kept.token_to_chars(i) for i in range(len(kept.input_ids))]
                return prompt[max((span.end for span in ends if span), default=0) :].strip()
            all_ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
            inside = self.limit - self.tokenizer.num_special_tokens_to_add()
            return str(self.tokenizer.decode(all_ids[inside:])).strip()


def check_prompts(prompts: Iterable[str]) -> list[str]:
    found = list(prompts)
    if not found:
        raise BadInput("prompt", "no prompt was given; pass at least one, it may be empty")
    for prompt in found:
        if not isinstance(prompt, str):
            raise BadInput("prompt", f"prompt = {prompt!r} is a {type(prompt).__name__}; pass text")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(
                "prompt",
                f"prompt has half a character (a lone surrogate) at position {error.start}; remove it",
            ) from error
    return found


@dataclass(frozen=True)
class Codec:
    """An AutoencoderKL: images [B,3,H,W] in 0..1 to standardised latents [B,C,H/factor,W/factor] and back."""

    vae: Any

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def shift(self) -> float:
        return float(self.vae.config.shift_factor or 0.0)

    @property
    def scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self.vae.device, self.vae.dtype) / self.scale + self.shift
        with torch.no_grad():
            images = self.vae.decode(z, return_dict=False)[0].float()
        if not bool(torch.isfinite(images).all()):
            raise NotFinite(
                f"the decoded image holds NaN or infinity in {self.vae.dtype}; use float32 or bfloat16"
            )
        return (images / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        _, _, height, width = images.shape
        if height % self.factor or width % self.factor:
            raise BadInput(
                "image", f"image of {width}x{height} is not a multiple of {self.factor}; crop or resize it"
            )
        pixels = images.to(self.vae.device, self.vae.dtype) * 2 - 1
        with torch.no_grad():
            mean = self.vae.encode(pixels).latent_dist.mean
        return ((mean - self.shift) * self.scale).float()


def alike(conds: Sequence[Cond]) -> list[list[int]]:
    """Which conditions can share one network call: those whose embeds have the same names and shapes."""
    groups: dict[Any, list[int]] = {}
    for i, cond in enumerate(conds):
        shape = tuple(sorted((name, tuple(value.shape[1:])) for name, value in cond.embeds.items()))
        groups.setdefault(shape, []).append(i)
    return list(groups.values())


def stacked(conds: Sequence[Cond], name: str, batch: int, dtype: torch.dtype) -> Tensor:
    """One embed of several conditions along the batch axis, [len(conds) * batch, ...]."""
    parts = []
    for cond in conds:
        value = cond.embeds[name]
        if value.shape[0] not in (1, batch):
            raise BadInput(
                "prompt", f"{name} of {cond.key!r} is for {value.shape[0]} images, x holds {batch}"
            )
        parts.append(value.expand(batch, *value.shape[1:]))
    return torch.cat(parts).to(dtype)


@dataclass(eq=False)
class Checkpoint:
    """An opened checkpoint: a Model. A family fills it with its own denoiser, encoder and limits."""

    name: str
    family: str
    denoise: Denoiser
    limits: Limits
    defaults: Defaults
    codec: Codec
    text: Text
    embed: Callable[[Sequence[str]], Mapping[str, Tensor]]
    schedule_for: Callable[[int, int], Schedule]
    """The checkpoint's own schedule at a width and height in pixels."""
    parts: Mapping[str, Part]
    card: Card = field(default_factory=Card)

    def encode(self, prompts: Sequence[str], *, key: str) -> Cond:
        with torch.no_grad(), quiet():
            return Cond(key, self.embed(check_prompts(prompts)))

    def dropped(self, prompt: str) -> str:
        return self.text.dropped(prompt)

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return (self.codec.channels, height // self.codec.factor, width // self.codec.factor)

    def decode(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.codec.encode(images)

    def default_schedule(self, width: int, height: int) -> Schedule:
        return self.schedule_for(width, height)

    @property
    def projection(self) -> Projection | None:
        """A linear preview of the latents, if the card brings one."""
        rows = self.card.preview
        if rows is None:
            return None
        table = torch.tensor(rows)
        return Projection(table[:-1], table[-1], self.codec.factor)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {name: tensor_hash(part.files) for name, part in self.parts.items()}

    def info(self) -> Mapping[str, Any]:
        first = next(iter(self.parts.values())).net
        return {
            "name": self.name,
            "family": self.family,
            "dtype": str(self.codec.vae.dtype).removeprefix("torch."),
            "device": str(self.codec.vae.device),
            "parameters": {name: count(part.net) for name, part in self.parts.items()},
            "hashes": dict(self._hashes),
            "network": type(first).__name__,
            "licence": self.card.licence,
        }


def named_schedule(id: str) -> Schedule:
    """A schedule by its catalogue id, as a card may name it."""
    found: Schedule = with_defaults("schedules", id)
    return found


def count(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())
