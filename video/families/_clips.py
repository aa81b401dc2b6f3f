"""What families of clips share: the opened checkpoint with its length, and the codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...pipelines.errors import BadInput
from ...pipelines.families._common import Checkpoint, check_multiple, shown
from ...pipelines.families._parts import quiet
from ...pipelines.protocols import Cond, Guidance, Schedule
from ..lengths import check_frames
from ..protocols import Lengths, Span

Run = Callable[[Any, Tensor], Tensor]
"""(the autoencoder, latents [B,C,f,h,w]) -> frames [B,3,F,H,W] in -1..1, or the way back."""


def plain_decode(vae: Any, z: Tensor) -> Tensor:
    frames: Tensor = vae.decode(z, return_dict=False)[0]
    return frames


def plain_encode(vae: Any, frames: Tensor) -> Tensor:
    z: Tensor = vae.encode(frames).latent_dist.mean
    return z


@dataclass(frozen=True)
class ClipCodec:
    """A video autoencoder: clips [B,3,F,H,W] in 0..1 to standardised latents [B,C,f,h,w] and back.

    `every` frames become one latent frame, after the first, which is one by itself. `mean` and `std` are those of each
    channel. The network wants `padding` latent frames more in front, which decode to nothing.
    """

    vae: Any
    channels: int
    factor: int
    every: int
    mean: Sequence[float] | float = 0.0
    std: Sequence[float] | float = 1.0
    padding: int = 0
    decoder: Run = plain_decode
    encoder: Run = plain_encode

    def latent_frames(self, frames: int) -> int:
        return (frames - 1) // self.every + 1 + self.padding

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        z = latents[:, :, self.padding :].to(self.vae.device, self.vae.dtype) * std + mean
        with torch.no_grad():
            return shown(self.decoder(self.vae, z), self.vae.dtype)

    def encode(self, images: Tensor) -> Tensor:
        check_multiple(images, self.factor)
        if images.ndim != 5 or (images.shape[2] - 1) % self.every:
            raise BadInput(
                "image",
                f"a clip [B,3,F,H,W] of {self.every} k + 1 frames is needed, not {list(images.shape)}",
            )
        mean, std = self._statistics()
        frames = images.to(self.vae.device, self.vae.dtype) * 2 - 1
        with torch.no_grad():
            z = ((self.encoder(self.vae, frames) - mean) / std).float()
        return torch.cat([z[:, :, :1]] * self.padding + [z], dim=2)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of each channel, [C or 1,1,1,1]."""
        table = (torch.as_tensor(value, device=self.vae.device) for value in (self.mean, self.std))
        mean, std = (value.to(self.vae.dtype).view(-1, 1, 1, 1) for value in table)
        return mean, std


def framewise(run: Run, most: int = 16) -> Run:
    """An autoencoder of single pictures on every frame, `most` at a time."""

    def folded(vae: Any, x: Tensor) -> Tensor:
        flat = x.transpose(1, 2).flatten(0, 1)
        out = torch.cat([run(vae, some) for some in flat.split(most)])
        return out.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)

    return folded


Join = Callable[[Mapping[str, Tensor], Span, bool], Mapping[str, Tensor]]
"""(named pictures [1 or B,3,H,W] in 0..1, length of the clip, whether for the negative) -> further embeds."""
Spacing = Callable[[Sequence[int]], Schedule]
"""Shape [C,f,h,w] of one latent -> the checkpoint's own schedule."""


@dataclass(eq=False, kw_only=True)
class ClipCheckpoint(Checkpoint):
    """A checkpoint of clips: a ClipModel."""

    codec: ClipCodec
    lengths: Lengths
    span: Span
    spaced: Spacing
    schedule_for: Callable[[int, int], Schedule] = field(init=False)
    joined: Join | None = None
    """Embeds of pictures and of the length, for a network that is told them."""
    guide: Guidance | None = None

    def __post_init__(self) -> None:
        self.schedule_for = lambda width, height: self.spaced(self.latent_shape(width, height))

    def at(
        self, frames: int | None = None, *, fps: float | None = None, motion: float | None = None
    ) -> ClipCheckpoint:
        span = self.span
        if frames is not None:
            check_frames(frames, self.lengths)
            span = span._replace(frames=frames)
        if fps is not None:
            if not 0 < fps <= 1000:
                raise BadInput("fps", f"fps = {fps} is outside 0..1000; the usual is {self.lengths.fps:g}")
            span = span._replace(fps=fps)
        if motion is not None:
            if span.motion is None:
                raise BadInput("motion", f"{self.name} is told no amount of motion; leave it out")
            if not 0 <= motion <= 255:
                raise BadInput("motion", f"motion = {motion} is outside 0..255; the usual is {span.motion:g}")
            span = span._replace(motion=motion)
        return replace(self, span=span)

    def attach(self, cond: Cond, pictures: Mapping[str, Tensor]) -> Cond:
        found = super().attach(cond, pictures)
        if self.joined is None:
            return found
        with torch.no_grad(), quiet():
            more = self.joined(pictures, self.span, found.key.split("/")[0] == "neg")
        return Cond(found.key, {**found.embeds, **more})

    def latent_shape(self, width: int, height: int, frames: int | None = None) -> tuple[int, ...]:
        long = self.codec.latent_frames(self.span.frames if frames is None else frames)
        return (self.codec.channels, long, height // self.codec.factor, width // self.codec.factor)
