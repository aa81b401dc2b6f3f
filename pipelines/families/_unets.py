"""What the families with a UNet2DConditionModel share: noise settings, CLIP prompts, further input channels.

A folder says nowhere that its UNet was distilled; `few_steps` tells it from the scheduler that it came with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path as Folder
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..card import Card, read_card
from ..errors import BadInput, BadWeights
from ..paths import step_of
from ..protocols import Defaults, Limits, Path, Schedule
from ._clip_prompts import ClipPrompts, say
from ._common import Attach, Checkpoint, Codec, spacing, vp_path
from ._denoiser import NetDenoiser
from ._parts import Part, load_part, load_tokenizer, scheduler_config
from ._schedules import Skipping

SCHEDULE = "uniform"
KINDS = ("epsilon", "v_prediction", "sample")
SKIPPING = {"LCMScheduler": "lcm", "TCDScheduler": "tcd"}
"""Schedulers that serve distilled networks alone, and their samplers."""
TRAILING = {"EulerAncestralDiscreteScheduler": "euler-ancestral", "EulerDiscreteScheduler": "ddim"}
"""Schedulers that come with distilled networks where their times are trailing."""


class Noise(NamedTuple):
    """How a UNet on a VP path was trained and is sampled, by its scheduler's settings."""

    kind: str
    path: Path
    schedule: Schedule
    few: str | None
    """Sampler of a network that was distilled to few steps; None where nothing says so."""

    def defaults(self, net: Any, factor: int, scale: float) -> Defaults:
        width, height = native_size(net, factor)
        told = net.config.time_cond_proj_dim is not None
        few = self.few or ("lcm" if told else None)
        if few is None:
            return Defaults(width, height, 30, scale, "dpmpp-2m", SCHEDULE)
        return Defaults(width, height, 4, 8.5 if told else 1.0, few, SCHEDULE)


def native_size(net: Any, factor: int) -> tuple[int, int]:
    """Width and height in pixels at which a UNet was trained."""
    size = net.config.sample_size
    height, width = (int(n) * factor for n in ([size, size] if isinstance(size, int) else size))
    return width, height


def read_noise(folder: Folder) -> Noise:
    config = scheduler_config(folder)
    kind, name = str(config.get("prediction_type", "epsilon")), str(config.get("_class_name"))
    if kind not in KINDS:
        raise BadWeights(f"{folder}: prediction_type is {kind!r}; known are {', '.join(KINDS)}")
    if name.startswith(("EDM", "FlowMatch")) or config.get("use_flow_sigmas"):
        raise BadWeights(
            f"{folder}: scheduler is {name!r}; a UNet of this layout needs one with a noise table"
        )
    path = vp_path(config, kind, folder)
    if name not in SKIPPING:
        return Noise(kind, path, spacing(config, folder), few_steps(config))
    original = config.get("original_inference_steps", 50)
    if type(original) is not int or not 0 < original <= (path.grid or 0):
        raise BadWeights(f"{folder}: original_inference_steps = {original!r} must be in 1..{path.grid}")
    return Noise(kind, path, Skipping(original), few_steps(config))


def few_steps(config: Mapping[str, Any]) -> str | None:
    """The sampler of a distilled checkpoint: LCM, TCD, or Euler with trailing times (the Turbos, Lightning).

    A plain epsilon model saved with trailing Euler is taken for one too; its card or the request says otherwise.
    """
    name = str(config.get("_class_name"))
    if name in SKIPPING:
        return SKIPPING[name]
    trailing = config.get("timestep_spacing") == "trailing"
    return TRAILING.get(name) if trailing and config.get("prediction_type", "epsilon") == "epsilon" else None


class SdParts(NamedTuple):
    """A folder in the layout of Stable Diffusion, opened."""

    folder: Folder
    dtype: torch.dtype
    parts: dict[str, Part]
    codec: Codec
    clip: ClipPrompts
    card: Card

    @property
    def net(self) -> Any:
        return self.parts["unet"].net


def open_sd(folder: Folder, dtype: torch.dtype, device: torch.device) -> SdParts:
    tokenizer = load_tokenizer(folder, "tokenizer")
    parts = {
        "unet": load_part(folder, "unet", "diffusers.UNet2DConditionModel", dtype, device),
        "text_encoder": load_part(folder, "text_encoder", "transformers.CLIPTextModel", dtype, device),
        "vae": load_part(folder, "vae", "diffusers.AutoencoderKL", dtype, device),
    }
    codec, clip = Codec(parts["vae"].net), ClipPrompts.of(tokenizer, parts["text_encoder"].net)
    return SdParts(folder, dtype, parts, codec, clip, read_card(folder, codec.channels))


def sd_checkpoint(
    opened: SdParts, family: str, denoise: NetDenoiser, defaults: Defaults, own: Schedule
) -> Checkpoint:
    """The checkpoint of a folder in Stable Diffusion's layout, whatever its path."""
    defaults, clip = opened.card.over(defaults), opened.clip
    told = opened.net.config.time_cond_proj_dim is not None
    guidance = torch.tensor([defaults.guidance], device=clip.clip.device) if told else None
    return Checkpoint(
        name=opened.card.name or opened.folder.name,
        family=family,
        denoise=denoise,
        limits=Limits(opened.codec.factor, opened.codec.factor, 4096, clip.words.most),
        defaults=defaults,
        codec=opened.codec,
        text=clip.words,
        learners=(clip,),
        embed=_ClipEncoder(clip, guidance),
        schedule_id=SCHEDULE,
        schedule_for=lambda width, height: own,
        parts=opened.parts,
        card=opened.card,
    )


def sd_on_vp(opened: SdParts, family: str, noise: Noise) -> Checkpoint:
    """A UNet trained on a noise table, with whatever channels it takes beside the latents."""
    defaults = noise.defaults(opened.net, opened.codec.factor, 7.5)
    call = partial(unet_output, path=noise.path)
    denoise = NetDenoiser(opened.net, noise.path, opened.dtype, noise.kind, call)
    return sd_checkpoint(opened, family, denoise, defaults, noise.schedule)


def check_channels(net: Any, codec: Codec, beside: int, folder: Folder) -> None:
    if net.config.in_channels != codec.channels + beside:
        raise BadWeights(
            f"{folder}: the UNet takes {net.config.in_channels} channels and the VAE makes {codec.channels}; "
            f"this pipeline puts {beside} beside them, so model_index.json names the wrong one "
            "(9 channels are StableDiffusionInpaintPipeline, 8 StableDiffusionInstructPix2PixPipeline)"
        )


@dataclass(frozen=True)
class _ClipEncoder:
    clip: ClipPrompts
    guidance: Tensor | None

    def __call__(self, prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        embeds = say([self.clip], prompts)[0].embeds()
        return embeds if self.guidance is None else embeds | {"guidance": self.guidance}


def unet_output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path) -> Tensor:
    """What the UNet says at x [N,C,h,w]."""
    out: Tensor = net(
        with_beside(net, x, embeds),
        torch.full((len(x),), step_of(path, t), device=x.device, dtype=torch.float32),
        encoder_hidden_states=embeds["text"],
        encoder_attention_mask=embeds.get("mask"),
        timestep_cond=guidance_features(net, x, embeds),
        added_cond_kwargs=style_of(embeds),
        return_dict=False,
    )[0]
    return out


def with_beside(net: Any, x: Tensor, embeds: Mapping[str, Tensor]) -> Tensor:
    """x and the channels of `beside` after it, as many as the UNet takes."""
    if "beside" in embeds:
        beside = embeds["beside"]
        if beside.shape[2:] != x.shape[2:]:
            raise BadInput("pictures", "the pictures must have the size of the result; resize or crop them")
        x = torch.cat([x, beside], dim=1)
    if x.shape[1] != net.config.in_channels:
        raise BadInput(
            "pictures",
            f"the UNet takes {net.config.in_channels} channels, not {x.shape[1]}; attach its pictures",
        )
    return x


@dataclass(frozen=True, eq=False)
class WithoutPictures:
    """`unet_output` of an inpainting UNet that takes all for hole where it was given no pictures."""

    codec: Codec
    path: Path
    blanks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """What stands beside x by its height and width, [1,1+C,h,w]; the same for every run."""

    def __call__(self, net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
        if "beside" not in embeds:
            size = (x.shape[2], x.shape[3])
            if size not in self.blanks:
                picture = torch.full((1, 3, *(side * self.codec.factor for side in size)), 0.5)
                mask = torch.ones(1, 1, *picture.shape[2:])
                self.blanks[size] = inpainting(self.codec)({"image": picture, "mask": mask})["beside"]
            embeds = {**embeds, "beside": self.blanks[size].to(x).expand(len(x), -1, -1, -1)}
        return unet_output(net, x, t, embeds, self.path)


def guidance_features(net: Any, x: Tensor, embeds: Mapping[str, Tensor]) -> Tensor | None:
    """Sines and cosines [N,D] of 1000 w, w = guidance - 1, for a UNet distilled to hear it (arXiv:2310.04378)."""
    if "guidance" not in embeds:
        return None
    width = int(net.config.time_cond_proj_dim)
    half = width // 2
    w = 1000 * (embeds["guidance"].float() - 1)
    powers = torch.arange(half, device=w.device) * -(torch.log(torch.tensor(10000.0)).item() / (half - 1))
    angles = w[:, None] * torch.exp(powers)[None]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2)).to(x.dtype)


def style_of(embeds: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """What an IP-Adapter in the UNet looks at, under the name that diffusers has for it: `style` [N,pictures,...]."""
    return {"image_embeds": [embeds["style"]]} if "style" in embeds else {}


def inpainting(codec: Codec) -> Attach:
    """`image` and `mask` as the channels beside x: the mask in latent cells, and the picture with a grey hole."""

    def attached(pictures: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        for name, other in (("image", "mask"), ("mask", "image")):
            if name not in pictures:
                raise BadInput(
                    "pictures", f"inpainting needs the picture {name!r} beside {other!r}; give both"
                )
        image, mask = pictures["image"], pictures["mask"]
        if mask.shape[1] != 1 or mask.shape[2:] != image.shape[2:]:
            raise BadInput(
                "pictures",
                f"mask is {list(mask.shape)} and image {list(image.shape)}; a mask is [B,1,H,W] of the same size",
            )
        hole = mask >= 0.5
        latents = codec.encode(torch.where(hole, image.new_tensor(0.5), image))
        cells = F.interpolate(hole.to(latents), size=latents.shape[2:])
        return {"beside": torch.cat([cells.expand(len(latents), -1, -1, -1), latents], dim=1)}

    return attached
