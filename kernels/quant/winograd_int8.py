"""3 x 3 convolutions of stride 1 by Winograd's F(2 x 2, 3 x 3) in 8 bits, in C++: four ninths of the multiplications.

Paper: arXiv:1509.09308, section 4.1. Each output tile of 2 x 2 is computed from an input tile of 4 x 4, which a fixed
linear map takes to 16 numbers; across channels each of the 16 is a product of its own. What the map gives is rounded
to 8 bits: weights with a scale per output and number, activations with a scale and a zero per tile and number. So a
picture comes out the same in any batch; the error is 1.5 to 1.9 times that of a convolution that is rounded as it is.
Weights take 16 bytes instead of 9.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..foretold import tell
from ..native.around import AROUND_FIELDS, PLAIN, After, Around, Norm, at, done, functions, seen
from .fused import MOST_INPUTS
from .int8 import LEVELS, weight_of

AT_ONCE = 64
"""Outputs whose weights are prepared at a time."""
HELD, LEAST, GREATEST = 640 << 10, 16, 128
"""Bytes of a thread's rounded tiles, and the least and greatest number of them: as in winograd_int8.cpp."""

WORK = 0.6
"""Of the time that the products without tiles take: 4/9 and what the map takes before and after."""

_BT = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float64)
_G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)
_AT = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float64)


class _Convolution(ctypes.Structure):
    _fields_ = (
        *AROUND_FIELDS,
        *((name, ctypes.c_void_p) for name in ("weight", "weight_scale", "weight_sum")),
    )


class Tiled(nn.Module):
    """A weight [O,I,3,3] and its bias [O] as the kernel reads them."""

    packed: Tensor
    scale: Tensor
    sums: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape[:2]
        if self.inputs > MOST_INPUTS:
            raise ValueError(f"a sum of {self.inputs} products, more than {MOST_INPUTS}")
        panels, quads = -(-self.outputs // 16), -(-self.inputs // 4)
        packed = torch.zeros(panels, 16, quads, 16, 4, dtype=torch.int8)
        held = {
            "packed": packed,
            "scale": torch.empty(16, self.outputs),
            "sums": torch.empty(16, self.outputs, dtype=torch.int32),
            "bias": None if bias is None else bias.detach().float().contiguous(),
        }
        for name, tensor in held.items():
            self.register_buffer(name, tensor, persistent=False)
        for first in range(0, self.outputs, AT_ONCE):
            stored, scale = _numbers(weight.detach()[first : first + AT_ONCE])
            some = slice(first, first + len(stored))
            self.scale[:, some], self.sums[:, some] = scale.T, stored.sum(2, dtype=torch.int32).T
            full = stored.new_zeros(-(-len(stored) // 16) * 16, 16, quads * 4)
            full[: len(stored), :, : self.inputs] = stored
            ordered = full.view(-1, 16, 16, quads, 4).permute(0, 2, 3, 1, 4)
            packed[first // 16 : first // 16 + len(ordered)] = ordered

    def forward(self, x: Tensor, after: After = PLAIN, norm: Norm | None = None, times: int = 1) -> Tensor:
        """x [B,I,H,W] float32 -> [B,O,H*times,W*times], channels last; the residual is [B,H,W,O]. No gate or gain."""
        given = Around(x, self.bias, self.outputs, after, norm, times)
        x, out = given.x, given.out
        if x.is_meta:
            beside = torch.get_num_threads() * self._beside(out.shape[2]) + (0 if norm is None else seen(x))
            tell("bytewise", WORK * 18.0 * out.numel() * self.inputs, beside)
            return out.permute(0, 3, 1, 2)
        told = _Convolution(*given.fields(), at(self.packed), at(self.scale), at(self.sums))
        done(functions().sfumato_winograd_int8(ctypes.byref(told)))
        return out.permute(0, 3, 1, 2)

    def _beside(self, width: int) -> int:
        """Bytes that a thread holds between its stages."""
        tiles = min(max(HELD // (16 * self.inputs), LEAST), GREATEST)
        return 16 * width * self.inputs + tiles * (16 * self.inputs + 16 * 48 * 4)


def _numbers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [O,I,3,3] -> in 8 bits [O,16,I], and scales [O,16]."""
    mapped = torch.einsum("ij,ocjk,lk->oilc", _G, weight.double(), _G).float()
    stored, scale = weight_of(mapped.reshape(-1, weight.shape[1]))
    return stored.view(len(weight), 16, -1), scale.view(len(weight), 16)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Reference: x [B,I,H,W] -> [B,O,H,W], padded by one."""
    batch, _, height, width = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    padded = F.pad(x, (1, 2 * columns - width + 1, 1, 2 * rows - height + 1))
    tiles = padded.unfold(2, 4, 2).unfold(3, 4, 2)
    numbers = torch.einsum("ij,bchwjk,lk->ilbhwc", _BT.float(), tiles, _BT.float()).flatten(0, 1)
    low, high = numbers.amin(-1, keepdim=True).clamp(max=0), numbers.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(high > low, (high - low) / LEVELS, torch.ones_like(low))
    zero = (-low / scale).round()
    rounded = ((numbers / scale).round() + zero).clamp(0, LEVELS)
    stored, by = _numbers(weight)
    matrices = stored.float() * by.unsqueeze(2)
    summed = torch.einsum("kbhwc,okc->bohwk", (rounded - zero) * scale, matrices).unflatten(-1, (4, 4))
    pixels = torch.einsum("ai,bohwij,dj->bohawd", _AT.float(), summed, _AT.float())
    image = pixels.reshape(batch, -1, 2 * rows, 2 * columns)[:, :, :height, :width]
    return image if bias is None else image + bias.view(1, -1, 1, 1)
