"""Noise from one CPU generator per image: a seed gives the same image at any batch size and on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SeededNoise:
    """Draws standard normal tensors, one after the other. Its state can be saved and restored exactly.

    Draws are made on the CPU in float32 and then cast, so they equal `torch.randn(shape, generator=g)` of a
    CPU generator with the same seed.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        *,
        stacked: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """One generator per seed; `shape` is that of one image, without batch axis, unless `stacked` is false."""
        if not seeds or (not stacked and len(seeds) != 1):
            raise ValueError(f"need one seed per image (exactly one if not stacked), got {len(seeds)}")
        self.shape = tuple(shape)
        self.stacked = stacked
        self.device = torch.device(device)
        self.dtype = dtype
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @classmethod
    def batch(
        cls,
        seed: int,
        n: int,
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> SeededNoise:
        """For a batch [n, *shape]: image i uses seed + i, so a batch is the stack of its singles."""
        return cls(range(seed, seed + n), shape, device=device, dtype=dtype)

    @classmethod
    def whole(
        cls,
        seed: int,
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> SeededNoise:
        """For one thing without batch axis, as a set of views [V,C,H,W] or a vector [D]: one generator."""
        return cls([seed], shape, stacked=False, device=device, dtype=dtype)

    def __call__(self) -> Tensor:
        draws = [torch.randn(self.shape, generator=g, dtype=torch.float32) for g in self._generators]
        whole = torch.stack(draws) if self.stacked else draws[0]
        return whole.to(device=self.device, dtype=self.dtype)

    def states(self) -> Tensor:
        """The generators' states, uint8 [images, bytes]."""
        return torch.stack([g.get_state() for g in self._generators])

    def restore(self, states: Tensor) -> None:
        """Go on exactly from where `states` was taken."""
        if len(states) != len(self._generators):
            raise ValueError(f"{len(states)} generator states for {len(self._generators)} images")
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state.cpu().clone())
