"""What Wan is told about the pictures from which a clip starts, and with which it may end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...pipelines.errors import BadInput
from ...pipelines.families._opened import Opened
from ..protocols import Span
from ._clips import ClipCodec


@dataclass(frozen=True)
class Pictures:
    """`image` is the first frame and `last` the last one."""

    pipe: Any
    codec: ClipCodec
    needs: tuple[str, ...]
    accepts: tuple[str, ...]
    seen: bool
    """The network has CLIP's view of the pictures."""

    @classmethod
    def of(cls, opened: Opened, codec: ClipCodec, config: Any) -> Pictures:
        """From the settings of the transformer: one with places for the tokens of two pictures needs both."""
        seen, both = config.image_dim is not None, config.pos_embed_seq_len is not None
        if opened.pipe.config.expand_timesteps:
            return cls(opened.pipe, codec, ("image",), (), False)
        if seen:
            opened.net("image_encoder")
        return cls(
            opened.pipe, codec, ("image", "last") if both else ("image",), () if seen else ("last",), seen
        )

    def __call__(self, pictures: Mapping[str, Tensor], span: Span, negative: bool) -> Mapping[str, Tensor]:
        image, last = pictures["image"], pictures.get("last")
        if last is not None and last.shape != image.shape:
            raise BadInput(
                "pictures",
                f"the last picture is {list(last.shape)}, the first {list(image.shape)}; resize it",
            )
        if self.pipe.config.expand_timesteps:
            return {"first": self.codec.encode(image.unsqueeze(2))}
        clip = image.new_full((*image.shape[:2], span.frames, *image.shape[2:]), 0.5)  # grey, 0 in -1..1
        clip[:, :, 0] = image
        known = torch.zeros(span.frames)
        known[0] = 1
        if last is not None:
            clip[:, :, -1], known[-1] = last, 1
        z = self.codec.encode(clip)
        embeds = {"beside": torch.cat([self._mask(known, z), z], dim=1)}
        if self.seen:
            views = [self._view(picture) for picture in (image, last) if picture is not None]
            embeds["seen"] = torch.stack(views, dim=1)
        return embeds

    def _mask(self, known: Tensor, z: Tensor) -> Tensor:
        """Which frames are known, [B,every,f,h,w]: a channel for each frame of a latent one."""
        every = self.codec.every
        channels = torch.cat([known[:1].repeat(every), known[1:]]).view(-1, every).T
        return channels[None, :, :, None, None].to(z).expand(len(z), -1, -1, *z.shape[3:])

    def _view(self, picture: Tensor) -> Tensor:
        """CLIP's view [B,P,D], by the pipeline, which scales pixels of 8 bits."""
        pixels = (picture * 255).round().to(torch.uint8).cpu()
        found: Tensor = self.pipe.encode_image(list(pixels))
        return found
