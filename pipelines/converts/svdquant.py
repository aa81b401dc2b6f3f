"""svdquant: 4-bit weights and activations; what does not fit into 4 bits goes through a low-rank branch.

Paper: arXiv:2411.05007 (SVDQuant), eqs. 4-7; arXiv:2210.17323 (GPTQ), algorithm 1, by which the rest is rounded
Shapes: any linear layer or 2D convolution without groups, in any precision on any device
Units and ranges: bits 2..8 and inputs 4 or 8 (0 leaves activations alone); rank 0 and up; group a multiple of 8; alphas
    0..1 each; smallest 0 and up, weights of a layer
Cost: two thin products per layer and call; rank * (in + out) numbers beside each weight. When it is made, matrices of
    up to 2048 inputs are inverted
Neutral: smallest above every layer; rank = 0 without alphas and gptq is plain rounding
Errors: ValueError outside these ranges
Differs: activations of 4 bits are rounded but multiplied in floats; of 8 bits, with weights of 4, products are in 8
    bits by dual-grained scales, on a processor in float32. The branch is a product of its own, not fused. alpha is
    the best of a few per layer, by the error of products with inputs seen in calibration
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...kernels.quant.activations import Activation
from ...kernels.quant.gptq import Stepped, pack_for
from ...kernels.quant.integers import DualGrained
from ...kernels.quant.packed import Layer, matrix
from ...kernels.quant.stored import low_rank
from ._calibration import Seen
from ._layers import ENDS
from ._packing import (
    SMALLEST,
    check_range,
    check_smallest,
    pack_layers,
    pack_tensors,
    rounded_rows,
    seen_rows,
    spread,
    whole_numbers,
)


@dataclass(frozen=True)
class SvdQuant:
    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[str] = "bits"

    bits: int = 4
    """Of the weights, 2..8."""
    inputs: int = 4
    """Of the activations: 4 in groups, 8 per picture, 0 leaves them alone."""
    rank: int = 32
    """Of the branch in the network's own precision, 0 and up."""
    group: int = 64
    """Numbers that share a scale, a multiple of 8."""
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75)
    """How much of the activations' range may be moved into the weights, 0..1; none moves nothing."""
    smallest: int = SMALLEST
    """Weights that a layer must have; smaller ones stay as they are, 0 and up."""
    skip: tuple[str, ...] = ENDS
    """Names of layers that stay as they are, with * for anything."""
    seen: Seen | None = None
    """What the layers are given; without it nothing is moved, and rounding is plain."""
    gptq: bool = True
    """Make up for the rounding of each weight by those that come after it, going by what the layer is given."""

    def __post_init__(self) -> None:
        check_smallest(self.smallest)
        check_range("rank", self.rank, 0, 4096)
        for alpha in self.alphas:
            check_range("alphas", alpha, 0, 1)
        if self.inputs not in (0, 4, 8):
            raise ValueError(f"inputs must be 0, 4 or 8, got {self.inputs}")
        whole_numbers(self.bits, self.group)

    def __call__(self, net: nn.Module) -> nn.Module:
        return pack_layers(net, self._split, skip=self.skip, smallest=self.smallest)

    def _split(self, name: str, layer: Layer) -> nn.Module | None:
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            return None
        w, rows = matrix(layer), seen_rows(self.seen, name)
        trials: list[Tensor | None] = [None]
        if rows is not None and self.seen is not None:
            trials += [_smoothing(w, self.seen.layers[name].maxima, alpha) for alpha in self.alphas]
        made = [self._with(layer, w, smooth, None) for smooth in trials]
        if rows is None:
            return made[0]
        losses = [self._loss(layer, one, rows, rows @ w.T) for one in made]
        best = losses.index(min(losses))
        return self._with(layer, w, trials[best], rows) if self.gptq else made[best]

    def _with(self, layer: Layer, w: Tensor, smooth: Tensor | None, rows: Tensor | None) -> nn.Module:
        """x W = (x / s) (s W), and s W = the branch + the rest, of which the rest is rounded, if with rows by GPTQ."""
        form, beside = self._form(), {} if smooth is None else {"pre_quant_scale": smooth}
        if smooth is not None:
            w = w * spread(smooth, w)
            rows = None if rows is None else rows / spread(smooth, rows)
        if self.rank:
            down, up = low_rank(w, self.rank)
            w = w - up @ down
            beside |= {"low_down": down, "low_up": up}
        tensors = form.pack(w) if rows is None else pack_for(form, w, rows)
        return pack_tensors(layer, form, tensors, beside, self._activation())

    def _form(self) -> Stepped:
        eight = self.bits == 4 and self.inputs == 8
        return DualGrained(self.group) if eight else whole_numbers(self.bits, self.group)

    def _activation(self) -> Activation | None:
        if self.inputs == 0:
            return None
        return Activation(4, self.group) if self.inputs == 4 else Activation(8)

    def _loss(self, layer: Layer, made: nn.Module, rows: Tensor, wanted: Tensor) -> float:
        """Squared error of products with the rows."""
        smooth, down, up = (made._buffers.get(n) for n in ("pre_quant_scale", "low_down", "low_up"))
        x = rows if smooth is None else rows / spread(smooth.float(), rows)
        activation = self._activation()
        out = (x if activation is None else rounded_rows(layer, activation, x)) @ _dense(made).T
        if down is not None and up is not None:
            out = out + x @ down.float().T @ up.float().T
        return float((out - wanted).square().sum())


def _dense(made: nn.Module) -> Tensor:
    found: Tensor = made.dense()
    return found


def _smoothing(w: Tensor, maxima: Tensor, alpha: float) -> Tensor:
    """s [I] = max|x|^alpha / max|w|^(1 - alpha) (eq. 4), its middle at 1."""
    most = w.abs().amax(0).view(len(maxima), -1).amax(1).clamp(min=1e-5)
    s = maxima.clamp(min=1e-5) ** alpha / most ** (1 - alpha)
    return (s / torch.exp(s.log().mean())).clamp(1e-3, 1e3)
