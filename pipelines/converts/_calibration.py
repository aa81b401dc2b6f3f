"""What layers of a network are given as it runs: maxima per channel, ranges per step, and a sample of inputs.

`recording` listens while somebody runs the network; `pipelines.calibration` does so with prompts. A layer's rows are
those of its matrix product: tokens of a linear layer, patches of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.quant.packed import Layer, packable
from ..moment import step

SAMPLES = 16
"""Rows kept of each layer's call, at most."""
MOST = 64
"""Rows kept of each layer and step, at most."""


@dataclass(frozen=True, eq=False)
class LayerSeen:
    rows: Tensor
    """[R,N] inputs, float16 or the network's own precision; none of a convolution in groups."""
    at: Tensor
    """[R] the step of each row, 0 the noisiest."""
    maxima: Tensor
    """[I] greatest absolute value of each input channel in all steps."""
    ranges: Tensor
    """[steps,2] least and greatest value at each step."""
    first: Tensor | None
    """[I] the first token, if it was the same in every call: that of a text without look-ahead."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Of one network, by the layers' dotted names."""

    steps: int
    layers: Mapping[str, LayerSeen]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How much the network's output loses if one layer alone has another format.

    `losses` and `sizes` (bytes) are by layer and format name. Losses of `content` layers are 1 - SSIM, those of all
    others noise over signal.
    """

    losses: Mapping[str, Mapping[str, float]]
    sizes: Mapping[str, Mapping[str, int]]
    content: frozenset[str]


@dataclass
class _Ear:
    """Listens at one layer."""

    layer: Layer
    steps: int
    rng: torch.Generator
    rows: list[Tensor] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    maxima: Tensor | None = None
    ranges: Tensor = field(default_factory=lambda: torch.empty(0))
    first: Tensor | None = None
    varies: bool = False

    def __post_init__(self) -> None:
        self.ranges = torch.tensor([math.inf, -math.inf]).repeat(self.steps, 1)

    def hear(self, x: Tensor) -> None:
        now = step()
        index = 0 if now is None else min(now.index, self.steps - 1)
        axis = 1 if isinstance(self.layer, nn.Conv2d) else -1
        flat = x.movedim(axis, -1).flatten(0, -2)
        maxima = flat.abs().amax(0).float().cpu()
        self.maxima = maxima if self.maxima is None else torch.maximum(self.maxima, maxima)
        low, high = torch.aminmax(flat)
        self.ranges[index, 0] = torch.minimum(self.ranges[index, 0], low.float().cpu())
        self.ranges[index, 1] = torch.maximum(self.ranges[index, 1], high.float().cpu())
        self._hear_first(x)
        wanted = min(SAMPLES, MOST - self.at.count(index))
        if wanted > 0:
            rows = self._sample(x, wanted)
            self.rows.append(rows.float().cpu())
            self.at += [index] * len(rows)

    def _hear_first(self, x: Tensor) -> None:
        if x.ndim != 3 or self.varies or isinstance(self.layer, nn.Conv2d):
            return
        found = x[:, 0].float().cpu()
        self.first = found[0] if self.first is None else self.first
        near = 1e-4 * self.first.abs().max()
        self.varies = bool(((found - self.first).abs() > near).any())

    def _sample(self, x: Tensor, wanted: int) -> Tensor:
        """[R,N]"""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            flat = x.flatten(0, -2)
            return flat[torch.randperm(len(flat), generator=self.rng)[:wanted].to(x.device)]
        if layer.groups > 1:
            return x.new_zeros(0, 1)
        (pad_y, pad_x), (kernel, stride, dilation) = (
            layer.padding,
            (layer.kernel_size, layer.stride, layer.dilation),
        )
        padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
        span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        places = [(n - s) // by + 1 for n, s, by in zip(padded.shape[2:], span, stride, strict=True)]
        found = []
        for _ in range(wanted):
            image, top, left = (
                int(torch.randint(n, (1,), generator=self.rng)) for n in (len(x), places[0], places[1])
            )
            down, right = top * stride[0], left * stride[1]
            window = padded[
                image, :, down : down + span[0] : dilation[0], right : right + span[1] : dilation[1]
            ]
            found.append(window.flatten())
        return torch.stack(found)

    def seen(self) -> LayerSeen | None:
        if self.maxima is None:
            return None
        first = None if self.varies else self.first
        return LayerSeen(torch.cat(self.rows), torch.tensor(self.at), self.maxima, self.ranges, first)


class Recorder:
    """Filled while the network runs."""

    def __init__(self, net: nn.Module, steps: int) -> None:
        self.steps = steps
        self.ears: dict[str, _Ear] = {}
        for name, layer in net.named_modules():
            found = packable(layer)
            if found is not None:
                self.ears[name] = _Ear(found, steps, torch.Generator().manual_seed(len(self.ears)))

    def seen(self) -> Seen:
        found = {name: ear.seen() for name, ear in self.ears.items()}
        return Seen(self.steps, {name: layer for name, layer in found.items() if layer is not None})


@contextmanager
def recording(net: nn.Module, steps: int) -> Iterator[Recorder]:
    """Listen to all layers of a network; nothing stays on it."""
    found = Recorder(net, steps)

    def listener(ear: _Ear) -> Any:
        return lambda layer, args: ear.hear(args[0].detach())

    hooks = [ear.layer.register_forward_pre_hook(listener(ear)) for ear in found.ears.values()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
