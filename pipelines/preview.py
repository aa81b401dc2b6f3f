"""Cheap previews: a linear map from latent channels to RGB, instead of a decode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Projection:
    """rgb = latents @ matrix + bias, in 0..1, enlarged by repeating cells."""

    matrix: Tensor
    """[C,3]."""
    bias: Tensor
    """[3]."""
    enlarge: int = 8
    """Output pixels per latent cell, 1 and up."""

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.matrix.shape[1] != 3 or self.bias.shape != (3,):
            shapes = f"{tuple(self.matrix.shape)} and {tuple(self.bias.shape)}"
            raise ValueError(f"matrix must be [C,3] and bias [3], got {shapes}")
        if self.enlarge < 1:
            raise ValueError(f"enlarge must be 1 or more, got {self.enlarge}")

    def __call__(self, x0: Tensor) -> Tensor:
        """Latents [B,C,H,W] or [B,C,F,H,W] to uint8 [B,3,...] with H and W enlarged."""
        matrix, bias = self.matrix.to(x0.device), self.bias.to(x0.device)
        rgb = torch.einsum("bc...,cr->br...", x0.float(), matrix.float())
        rgb = rgb + bias.float().view(1, 3, *[1] * (x0.ndim - 2))
        small = (rgb.clamp(0, 1) * 255).round().to(torch.uint8)
        return small.repeat_interleave(self.enlarge, -1).repeat_interleave(self.enlarge, -2)

    @classmethod
    @torch.no_grad()
    def fit(cls, decode: Callable[[Tensor], Tensor], latents: Tensor, *, enlarge: int = 8) -> Projection:
        """The least-squares projection of a decoder ([B,C,H,W] to images [B,3,h,w] in 0..1) on a few latents."""
        images = decode(latents).float()
        small = (
            F.interpolate(images, size=latents.shape[-2:], mode="area")
            if images.shape != latents.shape
            else images
        )
        cells = latents.float().movedim(1, -1).reshape(-1, latents.shape[1])
        inputs = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1).cpu().double()
        targets = small.movedim(1, -1).reshape(-1, 3).cpu().double()
        solution = torch.linalg.lstsq(inputs, targets, driver="gelsd").solution.float()
        return cls(solution[:-1], solution[-1], enlarge)
