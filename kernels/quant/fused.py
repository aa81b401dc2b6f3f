"""Products in 8 bits with what stands around them, in C++: rounding, norm and gate before; bias, gate, sum after.

Weights are symmetric with one scale per output channel. Activations are unsigned with a scale and a zero of their own:
per row in a linear layer, per picture in a convolution; so a picture comes out the same in any batch. Sums are exact in
32 bits. Beside torch's own 8-bit kernels (`int8.py`) an activation is read once instead of four times.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..foretold import tell
from ..native.around import (
    GATES,
    NORM_FIELDS,
    PLAIN,
    After,
    Norm,
    at,
    checked,
    done,
    finished,
    float32,
    functions,
    norm_fields,
    room,
    seen,
)
from ..native.products import LayerNorm, Product
from .int8 import Geometry, Scale, Weight, restored, rounded

MOST_INPUTS = 65_000
"""Inputs of one sum, over all taps: more could leave 32 bits."""


class Stored(NamedTuple):
    """Pictures [B,H,W,I] in 8 bits with their padding, I a multiple of 4; real = scale [B] * (pixels - zero [B])."""

    pixels: Tensor
    scale: Tensor
    zero: Tensor


class _Rows(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out", "scale", "zero", "factor", "shift")),
        *((name, ctypes.c_int64) for name in ("rows", "features", "stride", "padded", "share")),
        *(("eps", ctypes.c_float), ("threads", ctypes.c_int32)),
    )


class _Pictures(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out", "scale", "zero")),
        *((name, ctypes.c_int64) for name in ("pictures", "height", "width", "channels", "padded")),
        *((name, ctypes.c_int64) for name in ("pad_y", "pad_x", "times")),
        *NORM_FIELDS,
        *(("threads", ctypes.c_int32), ("known_scale", ctypes.c_float), ("known_zero", ctypes.c_int32)),
    )


MEASURED = Scale(0.0, 0)
POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


def stored_rows(x: Tensor, norm: LayerNorm | None = None, known: Scale = MEASURED) -> Stored:
    """x [M,I] float32 -> [M,1,1,I] with a scale per row, after the norm; or all with a known one, without a norm."""
    x = float32(x) if x.stride(1) == 1 else float32(x).contiguous()
    rows, features = x.shape
    padded = -(-features // 4) * 4
    out = _room(x, rows, 1, 1, padded)
    if x.is_meta:
        return out
    if norm is not None:
        factor, shift = (None if t is None else t.contiguous() for t in (norm.factor, norm.shift))
        groups = next((len(t) for t in (factor, shift) if t is not None), 1)
        if any(t is not None and t.shape != (groups, features) for t in (factor, shift)) or rows % groups:
            raise ValueError(f"{rows} rows can't share {groups} factors and shifts of {features} features")
        given = _Rows(
            *(at(t) for t in (x, out.pixels, out.scale, out.zero, factor, shift)),
            *(rows, features, x.stride(0), padded, rows // groups, norm.eps, torch.get_num_threads()),
        )
        done(functions().sfumato_round_normed_rows(ctypes.byref(given)))
        return out
    functions().sfumato_round_rows(
        *(at(x), rows, features, x.stride(0), padded, *known),
        *(at(out.pixels), at(out.scale), at(out.zero), torch.get_num_threads()),
    )
    return out


def stored_pictures(
    x: Tensor, padding: tuple[int, int], norm: Norm | None = None, times: int = 1, known: Scale = MEASURED
) -> Stored:
    """x [B,I,H,W] float32 -> [B,H',W',I] with a scale per picture, or a known one, after the norm.

    Each pixel becomes `times` by `times`.
    """
    x = float32(x).contiguous(memory_format=torch.channels_last)
    pictures, channels, height, width = x.shape
    padded = -(-channels // 4) * 4
    size = (height * times + 2 * padding[0], width * times + 2 * padding[1])
    out = _room(x, pictures, *size, padded)
    if x.is_meta:
        tell("bytewise", 0, seen(x))
        return out
    given = _Pictures(
        *(at(t) for t in (x, out.pixels, out.scale, out.zero)),
        *(pictures, height, width, channels, padded, *padding, times),
        *norm_fields(norm),
        *(torch.get_num_threads(), *known),
    )
    done(functions().sfumato_round_pictures(ctypes.byref(given)))
    return out


def _room(x: Tensor, pictures: int, height: int, width: int, channels: int) -> Stored:
    return Stored(
        torch.empty(pictures, height, width, channels, dtype=torch.uint8, device=x.device),
        torch.empty(pictures, device=x.device),
        torch.empty(pictures, dtype=torch.int32, device=x.device),
    )


class Matrix(nn.Module):
    """A weight [O,I,kh,kw] or [O,I] and its bias [O] in the order in which the kernel reads them.

    Inputs that come without a norm are rounded by the `known` scale.
    """

    packed: Tensor
    sums: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Weight, bias: Tensor | None, known: Scale = MEASURED) -> None:
        super().__init__()
        self.known = known
        stored = weight.stored.contiguous()
        self.outputs, self.inputs = stored.shape[:2]
        self.taps = (stored.shape[2], stored.shape[3]) if stored.ndim == 4 else (1, 1)
        count = self.taps[0] * self.taps[1]
        if self.inputs * count > MOST_INPUTS:
            raise ValueError(f"a sum of {self.inputs * count} products, more than {MOST_INPUTS}")
        panels = -(-self.outputs // 16) * count * -(-self.inputs // 4) * 64
        held = {
            "scale": weight.scale.float().contiguous(),
            "bias": None if bias is None else bias.detach().float().contiguous(),
            "packed": torch.empty(panels, dtype=torch.int8),
            "sums": torch.empty(self.outputs, dtype=torch.int32),
        }
        for name, tensor in held.items():
            self.register_buffer(name, tensor, persistent=False)
        functions().sfumato_pack_weight(
            *(at(stored), self.outputs, self.inputs, count, at(self.packed), at(self.sums))
        )

    def rows(self, x: Tensor, norm: LayerNorm | None = None) -> Stored:
        return stored_rows(x, norm, MEASURED if norm else self.known)

    def pictures(self, x: Tensor, norm: Norm | None = None) -> Stored:
        return self.windows(x, (0, 0), norm)

    def windows(
        self, x: Tensor, padding: tuple[int, int], norm: Norm | None = None, times: int = 1
    ) -> Stored:
        """Of a convolution, with its padding."""
        return stored_pictures(x, padding, norm, times, MEASURED if norm else self.known)

    def forward(
        self, x: Stored, geometry: Geometry = POINTWISE, after: After = PLAIN, out: Tensor | None = None
    ) -> Tensor:
        """-> [B,h,w,O] float32 (in `out`), or half the O with `after.halves`. The padding is in x already."""
        pictures, height, width, inputs = x.pixels.shape
        (sy, sx), (dy, dx), (ky, kx) = geometry.stride, geometry.dilation, self.taps
        size = ((height - dy * (ky - 1) - 1) // sy + 1, (width - dx * (kx - 1) - 1) // sx + 1)
        wanted = [pictures, *size, self.outputs // 2 if after.halves else self.outputs]
        shift, gain, residual = checked(after, wanted)
        out = room(x.pixels, wanted, after, residual) if out is None else out.view(wanted)
        if out.is_meta:
            places = pictures * size[0] * size[1]
            tell("bytewise", 2.0 * places * ky * kx * inputs * self.outputs, 8 * places)
            return out
        given = Product(
            *(at(t) for t in (x.pixels, self.packed, self.scale, self.bias, self.sums)),
            *(at(t) for t in (x.scale, x.zero, shift, gain, residual, out)),
            *(pictures, height, width, inputs // 4, self.outputs, *size, ky, kx, sy, sx, dy, dx),
            *(GATES.index(after.gate), int(after.halves)),
            1 if gain is None else pictures * size[0] * size[1] // len(gain),
            *(after.factor, torch.get_num_threads()),
        )
        done(functions().sfumato_product_int8(ctypes.byref(given)))
        return out


def product(
    x: Tensor, weight: Weight, bias: Tensor | None, geometry: Geometry, after: After = PLAIN
) -> Tensor:
    """Reference of a convolution: x [B,I,H,W] -> [B,O,h,w]; shift [B,O], residual [B,O,h,w]."""
    y = F.conv2d(rounded(x), restored(weight), bias, *geometry)
    return finished(y, after)


def rows_product(x: Tensor, weight: Weight, bias: Tensor | None, after: After = PLAIN) -> Tensor:
    """Reference of a linear layer: x [M,I] -> [M,O]."""
    return finished(F.linear(rounded(x), restored(weight), bias), after)
