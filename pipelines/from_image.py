"""Start from a picture instead of from noise: image to image, and inpainting with any model.

The picture's latents are taken to the time that `strength` names and denoised from there (SDEdit, arXiv:2108.01073,
section 3). With a mask, what it leaves out is kept: in the latents at each evaluation (`keep_known`), and in pixels
bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import BadInput
from .paths import diffuse
from .protocols import Model, Wrap
from .wraps.keep_known import KeepKnown


class Begun(NamedTuple):
    """x [B,...] at the first of `ts`, and what must act on the run."""

    x: Tensor
    ts: list[float]
    wraps: tuple[Wrap, ...]


@dataclass(frozen=True, eq=False)
class FromImage:
    """Where a run starts."""

    image: Tensor
    """[1 or B,3,H,W] in 0..1."""
    strength: float = 0.6
    """Share of the steps that are taken, above 0 to 1; 1 starts from pure noise."""
    mask: Tensor | None = None
    """[1 or B,1,H,W], 1 = repaint, 0 = keep."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise BadInput(
                "strength", f"strength = {self.strength} is outside 0..1; give above 0, 1 is all steps"
            )
        if self.image.ndim != 4 or self.image.shape[1] != 3:
            raise BadInput("image", f"image has the shape {list(self.image.shape)}; [B,3,H,W] is needed")
        mask = self.mask
        if mask is None:
            return
        if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != self.image.shape[2:]:
            raise BadInput(
                "mask",
                f"mask has the shape {list(mask.shape)}; one channel and the image's height and width are needed",
            )
        if not 0 <= float(mask.min()) <= float(mask.max()) <= 1:
            raise BadInput(
                "mask", f"mask holds {float(mask.min())}..{float(mask.max())}; 0 (keep) to 1 (repaint)"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return int(self.image.shape[3]), int(self.image.shape[2])

    def __call__(self, model: Model, ts: Sequence[float], noise: Tensor) -> Begun:
        """The start of a run over the times `ts` whose first noise is `noise` [B,...]."""
        steps = len(ts) - 1
        taken = min(int(steps * self.strength), steps)
        if taken < 1:
            raise BadInput(
                "strength",
                f"strength = {self.strength} of {steps} steps is less than one; give more of either",
            )
        left = list(ts[steps - taken :])
        z = model.encode_image(self.image).to(noise).expand_as(noise)
        x = diffuse(model.denoise.path, z, noise, left[0])
        if self.mask is None:
            return Begun(x, left, ())
        cells = F.adaptive_max_pool2d(self.mask.to(noise), noise.shape[-2:])
        return Begun(x, left, (KeepKnown(z, cells.expand(len(noise), -1, -1, -1), noise),))

    def kept(self, pixels: Tensor) -> Tensor:
        """Generated pixels [B,3,H,W] with the picture's own where the mask keeps them."""
        if self.mask is None:
            return pixels
        return torch.where(self.mask.to(pixels) == 0, self.image.to(pixels), pixels)
