"""svd: Stable Video Diffusion: a picture begins to move; a spatio-temporal UNet on a VE path, without words.

A StableVideoDiffusionPipeline folder (14 frames, or 25 for XT). The picture's latents, with a little noise that is
always the same, stand beside those of each frame, and CLIP's view of it takes the place of a prompt. Guidance grows
from the first frame to the last (`frame-cfg`). Not for float16, in which the autoencoder overflows.
Licence of the published weights: Stability AI Community License.

Embeds: `seen` [B,1,D], `beside` [B,C,h,w], `fps`, `motion` and `blur` (noise on the picture), each [B].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...pipelines.card import read_card
from ...pipelines.errors import BadInput, BadWeights
from ...pipelines.families._common import Text
from ...pipelines.families._denoiser import NetDenoiser
from ...pipelines.families._opened import open_parts
from ...pipelines.paths import ve
from ...pipelines.protocols import Defaults, Limits, Model, Path
from ...pipelines.schedules.karras import Karras
from ..guidance.frame_cfg import FrameCfg
from ..protocols import Lengths, Span
from ._clips import ClipCheckpoint, ClipCodec, framewise, plain_encode

BLUR = 0.02
"""Spread of the noise on the picture."""
FPS, MOTION = 7, 127


@dataclass(frozen=True)
class Svd:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("StableVideoDiffusionPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        opened = open_parts(folder, dtype, device)
        net, vae = opened.net("unet"), opened.net("vae")
        opened.net("image_encoder")
        codec = ClipCodec(
            vae,
            channels=vae.config.latent_channels,
            factor=opened.pipe.vae_scale_factor,
            every=1,
            std=1 / vae.config.scaling_factor,
            decoder=_decode,
            encoder=framewise(plain_encode),
        )
        multiple, frames = codec.factor * 2 ** (len(net.config.block_out_channels) - 1), net.config.num_frames
        card = read_card(folder, codec.channels)

        return ClipCheckpoint(
            name=card.name or folder.name,
            family="svd",
            denoise=NetDenoiser(net, _path(opened.scheduler, folder), dtype, "v_prediction", _output),
            limits=Limits(multiple, multiple, 2048, 0),
            defaults=card.over(Defaults(1024, 576, 25, 3.0, "ddim", "karras")),
            codec=codec,
            text=_NoWords(None, 0),
            embed=lambda prompts, negative: {},
            schedule_id="karras",
            spaced=lambda shape: Karras(),
            parts=opened.parts,
            card=card,
            lengths=Lengths(1, frames, FPS),
            span=Span(frames, FPS, MOTION),
            needs=("image",),
            joined=_Picture(opened.pipe),
            guide=FrameCfg(1.0, card.guidance or 3.0),
        )


def _path(config: Mapping[str, Any], folder: Folder) -> Path:
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if config.get("prediction_type") != "v_prediction" or low is None or high is None:
        raise BadWeights(
            f"{folder}: the scheduler lacks prediction_type v_prediction, sigma_min or sigma_max; download it again"
        )
    try:
        return ve(float(low), float(high))
    except ValueError as error:
        raise BadWeights(f"{folder}: the scheduler's settings make no path ({error})") from error


class _NoWords(Text):
    """All of a prompt is dropped."""

    def dropped(self, prompt: str) -> str:
        return prompt


@dataclass(frozen=True)
class _Picture:
    pipe: Any

    def __call__(self, pictures: Mapping[str, Tensor], span: Span, negative: bool) -> Mapping[str, Tensor]:
        vae, image = self.pipe.vae, pictures["image"]
        noise = torch.randn((1, *image.shape[1:]), generator=torch.Generator().manual_seed(0))
        noisy = image.cpu().float() * 2 - 1 + BLUR * noise
        pixels = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        # only pictures, not tensors, are resized for CLIP
        seen = self.pipe._encode_image([Image.fromarray(data) for data in pixels], vae.device, 1, False)
        beside = plain_encode(vae, noisy.to(vae.device, vae.dtype))
        numbers = {"fps": span.fps - 1, "motion": float(span.motion or 0), "blur": BLUR}
        return {
            "seen": torch.zeros_like(seen) if negative else seen,
            "beside": torch.zeros_like(beside) if negative else beside,
            **{name: torch.tensor([value], device=vae.device) for name, value in numbers.items()},
        }


def _decode(vae: Any, z: Tensor) -> Tensor:
    frames: Tensor = vae.decode(z.transpose(1, 2).flatten(0, 1), num_frames=z.shape[2], return_dict=False)[0]
    return frames.unflatten(0, (len(z), z.shape[2])).transpose(1, 2)


def _output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
    """v [N,C,F,h,w] on the path scaled to unit spread; the network's order of axes is [N,F,C,h,w]."""
    beside = embeds["beside"].unsqueeze(2)
    if beside.shape[3:] != x.shape[3:]:
        raise BadInput("pictures", "the picture must have the size of the clip; resize or crop it")
    both = torch.cat([x / math.hypot(1, t), beside.expand(-1, -1, x.shape[2], -1, -1)], dim=1)
    out: Tensor = net(
        both.transpose(1, 2),
        torch.full((len(x),), 0.25 * math.log(t), device=x.device),
        encoder_hidden_states=embeds["seen"],
        added_time_ids=torch.stack([embeds[name] for name in ("fps", "motion", "blur")], dim=1).to(x.dtype),
        return_dict=False,
    )[0]
    return out.transpose(1, 2)
