"""What families share: prompts to tokens, the image codec, batching of conditions, the opened checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as Folder
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...kernels.mapped import let_go
from ...kernels.quant.packed import QuantConv2d, QuantLinear
from ..card import Card
from ..errors import BadInput, BadWeights, NotFinite
from ..lookup import with_defaults
from ..paths import vp_from_config
from ..preview import Projection
from ..protocols import Cond, Defaults, Denoiser, Limits, Path, Schedule
from ..schedules.flow_shift import FlowShift
from ..schedules.uniform import Uniform
from ..weights import tensor_hash
from ._parts import Part, quiet
from ._text import Text as Text
from ._text import check_prompts as check_prompts


class Coder(Protocol):
    """Images [B,3,H,W] in 0..1 to standardised latents [B,channels,H/factor,W/factor] and back.

    Video coders take and give a frame axis after the channels.
    """

    @property
    def vae(self) -> Any: ...

    @property
    def factor(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Codec:
    """An AutoencoderKL: images [B,3,H,W] in 0..1 to standardised latents [B,C,H/factor,W/factor] and back."""

    vae: Any

    def __post_init__(self) -> None:
        before = [weight.data for weight in self.vae.parameters() if weight.ndim == 4]
        self.vae.to(memory_format=torch.channels_last)  # a processor decodes 1.6 times as fast
        let_go(before)

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
        return shown(images, self.vae.dtype)

    def encode(self, images: Tensor) -> Tensor:
        check_multiple(images, self.factor)
        pixels = images.to(self.vae.device, self.vae.dtype) * 2 - 1
        with torch.no_grad():
            mean = self.vae.encode(pixels).latent_dist.mean
        return ((mean - self.shift) * self.scale).float()


def shown(images: Tensor, dtype: torch.dtype) -> Tensor:
    """What a decoder gives, -1..1, as pixels in 0..1; `dtype` is the decoder's, for the message."""
    if not bool(torch.isfinite(images).all()):
        raise NotFinite(f"the decoded image holds NaN or infinity in {dtype}; use float32 or bfloat16")
    return (images.float() / 2 + 0.5).clamp(0, 1)


def check_multiple(images: Tensor, factor: int) -> None:
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise BadInput("image", f"image of {width}x{height} is not a multiple of {factor}; crop or resize it")


class Learner(Protocol):
    """A text encoder that can be taught words."""

    @property
    def width(self) -> int: ...

    @property
    def learned(self) -> dict[str, Tensor]: ...


Embed = Callable[[Sequence[str], bool], Mapping[str, Tensor]]
"""(prompts, whether they are negative ones) -> named tensors [B,...]."""
Attach = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Named pictures [1 or B,3,H,W] in 0..1 (a mask has one channel, 1 = repaint) -> further embeds [1 or B,...]."""
Joint = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]
"""(embeds of the prompts, pictures) -> what replaces these embeds, where the text encoder sees the pictures too."""
Style = Callable[[Tensor, bool], Mapping[str, Tensor]]
"""(picture, whether the condition is a negative one, which gets none of it) -> further embeds [1 or B,...]."""


@dataclass(eq=False)
class Checkpoint:
    """An opened checkpoint: a Model. A family fills it with its own denoiser, encoder and limits."""

    name: str
    family: str
    denoise: Denoiser
    limits: Limits
    defaults: Defaults
    codec: Coder
    text: Text
    embed: Embed
    schedule_id: str
    """Catalogue id of the checkpoint's own schedule; a card may prefer another."""
    schedule_for: Callable[[int, int], Schedule]
    """The checkpoint's own schedule at a width and height in pixels."""
    parts: Mapping[str, Part]
    card: Card = field(default_factory=Card)
    needs: tuple[str, ...] = ()
    """Pictures without which the network says nothing, as ("image", "mask")."""
    accepts: tuple[str, ...] = ()
    """Pictures that it can do without."""
    attached: Attach | None = None
    joint: Joint | None = None
    learners: tuple[Learner, ...] = ()
    """The text encoders that textual inversion can reach."""
    styles: Mapping[str, Style] = field(default_factory=dict)
    """What adapters make of pictures of theirs, by the pictures' names; `accepts` has those too."""

    def encode(self, prompts: Sequence[str], *, key: str) -> Cond:
        with torch.no_grad(), quiet():
            told = [self.text.reads(prompt) for prompt in check_prompts(prompts)]
            return Cond(key, self.embed(told, key.split("/")[0] == "neg"))

    def attach(self, cond: Cond, pictures: Mapping[str, Tensor]) -> Cond:
        for name in pictures:
            if name not in (*self.needs, *self.accepts):
                known = ", ".join((*self.needs, *self.accepts)) or "none"
                raise BadInput("pictures", f"{self.name} takes no picture {name!r}; it takes {known}")
        for name in self.needs:
            if name not in pictures:
                raise BadInput("pictures", f"{self.name} needs the picture {name!r}; none was given")
        own = {name: picture for name, picture in pictures.items() if name not in self.styles}
        embeds, negative = dict(cond.embeds), cond.key.split("/")[0] == "neg"
        with torch.no_grad(), quiet():
            if own and self.joint is not None:
                embeds = dict(self.joint(embeds, own))
            if own and self.attached is not None:
                embeds |= self.attached(own)
            for name in self.styles.keys() & pictures.keys():
                embeds |= self.styles[name](pictures[name], negative)
        return Cond(cond.key, embeds)

    def reads(self, prompt: str) -> str:
        return self.text.reads(prompt)

    def dropped(self, prompt: str) -> str:
        return self.text.dropped(self.text.reads(prompt))

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        return (self.codec.channels, height // self.codec.factor, width // self.codec.factor)

    def decode(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.codec.encode(images)

    def default_schedule(self, width: int, height: int) -> Schedule:
        if self.defaults.schedule == self.schedule_id:
            return self.schedule_for(width, height)
        found: Schedule = with_defaults("schedules", self.defaults.schedule)
        return found

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
        files = {part.files for part in self.parts.values()}  # parts of a single file share it
        found = {group: tensor_hash(group) for group in files}
        return {name: found[part.files] for name, part in self.parts.items()}

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {name: count(part.net) for name, part in self.parts.items()}

    def info(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "family": self.family,
            "dtype": str(self.codec.vae.dtype).removeprefix("torch."),
            "device": str(self.codec.vae.device),
            "parameters": dict(self._counts),
            "hashes": dict(self._hashes),
            "network": type(self.denoise.net).__name__,
            "licence": self.card.licence,
        }


MOST_STEPS = 100_000
"""Steps of a noise table; 1000 are usual."""


def vp_path(config: Mapping[str, Any], kind: str, folder: Folder) -> Path:
    """The noise table of a checkpoint whose network predicts `kind`."""
    if kind == "epsilon" and config.get("rescale_betas_zero_snr"):
        raise BadWeights(
            f"{folder}: prediction_type epsilon says nothing at zero SNR; set rescale_betas_zero_snr to false"
        )
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 0 < steps <= MOST_STEPS:
        raise BadWeights(f"{folder}: num_train_timesteps = {str(steps)[:40]} must be in 1..{MOST_STEPS}")
    try:
        return vp_from_config(config)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise BadWeights(f"{folder}: the scheduler's settings make no noise table ({error})") from error


def spacing(config: Mapping[str, Any], folder: Folder) -> Uniform:
    """The checkpoint's own times; those from before the setting existed are leading."""
    try:
        return Uniform(config.get("timestep_spacing", "leading"), int(config.get("steps_offset", 0)))
    except (ValueError, TypeError) as error:
        raise BadWeights(f"{folder}: the scheduler's settings cannot be used ({error})") from error


def flow_schedule(config: Mapping[str, Any], folder: Folder) -> tuple[FlowShift, bool]:
    """How a flow checkpoint's scheduler pushes times towards noise, and whether that grows with the tokens.

    A solver with `use_flow_sigmas` (DPMSolverMultistep, UniPC) has a fixed `flow_shift`.
    """
    name, solver = config.get("_class_name"), bool(config.get("use_flow_sigmas", False))
    if name != "FlowMatchEulerDiscreteScheduler" and not solver:
        raise BadWeights(f"{folder}: scheduler is {name!r}; FlowMatchEulerDiscreteScheduler is needed")
    try:
        if solver:
            return FlowShift(shift=float(config.get("flow_shift", 1.0))), False
        shift = FlowShift(
            shift=float(config.get("shift", 1.0)),
            base_shift=float(config.get("base_shift") or 0.5),
            max_shift=float(config.get("max_shift") or 1.15),
            base_tokens=int(config.get("base_image_seq_len", 256)),
            max_tokens=int(config.get("max_image_seq_len", 4096)),
            terminal=float(config.get("shift_terminal") or 0.0),
        )
    except (ValueError, TypeError) as error:
        raise BadWeights(f"{folder}: the scheduler's settings cannot be used ({error})") from error
    return shift, bool(config.get("use_dynamic_shifting", False))


def count(net: nn.Module) -> int:
    """Parameters, without those of LoRAs that are on the network for now; of packed weights what they stand for."""
    held = sum(weight.numel() for name, weight in net.named_parameters() if ".lora_" not in name)
    packed = [layer for layer in net.modules() if isinstance(layer, QuantLinear | QuantConv2d)]
    return held + sum(layer.rows * layer.count - layer.weight.numel() for layer in packed)
