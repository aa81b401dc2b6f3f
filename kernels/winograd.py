"""3 x 3 convolutions of stride 1 by Winograd's F(4 x 4, 3 x 3), in C++ or torch: a quarter of the multiplications.

Paper: arXiv:1509.09308, section 4.3. Each output tile of 4 x 4 is computed from an input tile of 6 x 6, which a fixed
linear map takes to 36 numbers; across channels each of the 36 is a matrix product of its own. All three stages are
matrix products, tiles go through in blocks that stay in the processor's cache. float32 alone: the maps magnify errors
of rounding, in float32 to about 4e-6 of the result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .foretold import tell
from .native.around import (
    AROUND_FIELDS,
    PLAIN,
    After,
    Around,
    Norm,
    at,
    available,
    done,
    functions,
    seen,
)

BLOCK = 4_000_000
"""Bytes of one block's 36 numbers per tile and channel, in and out."""
HELD, FEWEST = 8 << 20, 32
"""The same in C++, and the tiles of a block at least: as in winograd.cpp."""

_BT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_G = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
_AT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)
_IN, _OUT = torch.kron(_BT, _BT).float(), torch.kron(_AT, _AT).float()
"""[36,36] and [16,36]."""
_WEIGHT = torch.kron(_G, _G)
"""[36,9], in double precision."""


def prepared(weight: Tensor) -> Tensor:
    """A weight [O,I,3,3] as its 36 matrices [36,I,O], float32."""
    return torch.cat([part for _, part in _parts(weight)], 2)


def packed(weight: Tensor) -> Tensor:
    """The same as the kernel in C++ reads them: [36,O/16,I,16], what is missing of the last 16 zero."""
    out = torch.zeros(36, -(-len(weight) // 16), weight.shape[1], 16)
    for first, part in _parts(weight):
        out[:, first // 16, :, : part.shape[2]] = part
    return out


def _parts(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Sixteen outputs at a time: the first one's number, and [36,I,16 or fewer]."""
    for first in range(0, len(weight), 16):
        some = weight.detach()[first : first + 16].double().flatten(2)
        yield first, (some @ _WEIGHT.T).float().permute(2, 1, 0)


def conv3x3(x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """x [B,I,H,W] float32 padded by one -> [B,O,H,W], channels last."""
    batch, into, height, width = x.shape
    out = matrices.shape[2]
    rows, columns = -(-height // 4), -(-width // 4)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * columns - width + 1, 1, 4 * rows - height + 1))
    s = padded.stride()
    tiles = padded.as_strided(
        (6, 6, batch, rows, columns, into), (s[1], s[2], s[0], 4 * s[1], 4 * s[2], s[3])
    )
    result = x.new_empty(batch, rows, 4, columns, 4, out)
    step = max(1, BLOCK // (4 * 36 * columns * (into + out)))
    for b in range(batch):
        for first in range(0, rows, step):
            some = tiles[:, :, b, first : first + step]
            count = some.shape[2] * columns
            inside = (_IN.to(x.device) @ some.reshape(36, count * into)).view(36, count, into)
            summed = torch.bmm(inside, matrices).view(36, count * out)
            pixels = (_OUT.to(x.device) @ summed).view(4, 4, -1, columns, out)
            result[b, first : first + step] = pixels.permute(2, 0, 3, 1, 4)
    image = result.view(batch, 4 * rows, 4 * columns, out)[:, :height, :width]
    if bias is not None:
        image = image + bias
    return image.permute(0, 3, 1, 2)


class _Convolution(ctypes.Structure):
    _fields_ = (*AROUND_FIELDS, ("matrix", ctypes.c_void_p))


class WinogradConv2d(nn.Module):
    """In place of a convolution that `fits`; in C++ where that compiles, else in plain torch."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.native = available() is None
        make = packed if self.native else prepared
        self.matrices = nn.Parameter(make(layer.weight), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def after(self, x: Tensor, after: After = PLAIN, norm: Norm | None = None, times: int = 1) -> Tensor:
        """With what stands around the layer; only where `native`."""
        out: Tensor = self(x, after, norm, times)
        return out

    def forward(self, x: Tensor, after: After = PLAIN, norm: Norm | None = None, times: int = 1) -> Tensor:
        """x [B,I,H,W] -> [B,O,H*times,W*times], channels last.

        No gate or gain comes after; the residual is [B,H,W,O].
        """
        if not self.native:
            return conv3x3(x, self.matrices, self.bias)
        given = Around(x, self.bias, self.out_channels, after, norm, times)
        x, out = given.x, given.out
        if x.is_meta:
            beside = self._beside(*out.shape[:3]) + (0 if norm is None else seen(x))
            tell("winograd", 18.0 * out.numel() * self.in_channels, beside)
            return out.permute(0, 3, 1, 2)
        told = _Convolution(*given.fields(), at(self.matrices))
        done(functions().sfumato_winograd(ctypes.byref(told)))
        return out.permute(0, 3, 1, 2)

    def _beside(self, batch: int, height: int, width: int) -> int:
        """Bytes between the stages in C++: of all tiles, or of one block of them."""
        each = 144 * (self.in_channels + self.out_channels)
        tiles = batch * -(-height // 4) * -(-width // 4)
        return each * min(tiles, max(HELD // each, FEWEST))


def fits(layer: nn.Conv2d) -> bool:
    """3 x 3, stride 1, padded by one with zeros, in one group."""
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
