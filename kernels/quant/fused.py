"""Products in 8 bits with what stands around them, in C++: rounding, norm and gate before; bias, gate, sum after.

Weights are symmetric with one scale per output channel. Activations are unsigned with a scale and a zero of their own:
per row in a linear layer, per picture in a convolution; so a picture comes out the same in any batch. Sums are exact in
32 bits. Beside torch's own 8-bit kernels (`int8.py`) an activation is read once instead of four times.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..native.library import library
from .int8 import Geometry, Weight, restored, rounded

Gate = Literal["none", "silu", "gelu", "gelu_tanh"]
GATES: tuple[Gate, ...] = ("none", "silu", "gelu", "gelu_tanh")
MOST_INPUTS = 65_000
"""Inputs of one sum, over all taps: more could leave 32 bits."""


def available() -> str | None:
    """None where the kernels run; else what is lacking."""
    return library().lacking or None


class Norm(NamedTuple):
    """A group norm and the gate after it, before a convolution."""

    groups: int
    weight: Tensor
    bias: Tensor
    eps: float
    gate: Literal["none", "silu"] = "silu"


class Stored(NamedTuple):
    """Pictures [B,H,W,I] in 8 bits with their padding, I a multiple of 4; real = scale [B] * (pixels - zero [B])."""

    pixels: Tensor
    scale: Tensor
    zero: Tensor


class _Pictures(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out", "scale", "zero")),
        *((name, ctypes.c_int64) for name in ("pictures", "height", "width", "channels", "padded")),
        *((name, ctypes.c_int64) for name in ("pad_y", "pad_x", "times", "groups")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("gate", "threads")),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "weight_scale", "bias", "weight_sum")),
        *((name, ctypes.c_void_p) for name in ("scale", "zero", "shift", "residual", "out")),
        *((name, ctypes.c_int64) for name in ("pictures", "height", "width", "inputs", "outputs")),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width", "taps_y", "taps_x")),
        *((name, ctypes.c_int64) for name in ("stride_y", "stride_x", "dilation_y", "dilation_x")),
        *((name, ctypes.c_int64) for name in ("gate", "halves")),
        ("factor", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


class After(NamedTuple):
    """What is done to a product: + shift [B,O], the gate, + residual (as the output), times factor.

    `halves`: the second half of the outputs goes through the gate and multiplies the first (GEGLU, arXiv:2002.05202).
    """

    gate: Gate = "none"
    halves: bool = False
    shift: Tensor | None = None
    residual: Tensor | None = None
    factor: float = 1.0


PLAIN = After()
POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


def stored_rows(x: Tensor) -> Stored:
    """x [M,I] float32 -> [M,1,1,I] with a scale per row."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, features = x.shape
    padded = -(-features // 4) * 4
    out = Stored(
        torch.empty(rows, 1, 1, padded, dtype=torch.uint8),
        torch.empty(rows),
        torch.empty(rows, dtype=torch.int32),
    )
    _functions().sfumato_round_rows(
        *(_at(x), rows, features, x.stride(0), padded),
        *(_at(out.pixels), _at(out.scale), _at(out.zero), torch.get_num_threads()),
    )
    return out


def stored_pictures(x: Tensor, padding: tuple[int, int], norm: Norm | None = None, times: int = 1) -> Stored:
    """x [B,I,H,W] float32 -> [B,H',W',I] with a scale per picture, after the norm; each pixel `times` by `times`."""
    x = x.contiguous(memory_format=torch.channels_last)
    pictures, channels, height, width = x.shape
    padded = -(-channels // 4) * 4
    size = (height * times + 2 * padding[0], width * times + 2 * padding[1])
    out = Stored(
        torch.empty(pictures, *size, padded, dtype=torch.uint8),
        torch.empty(pictures),
        torch.empty(pictures, dtype=torch.int32),
    )
    given = _Pictures(
        *(_at(t) for t in (x, out.pixels, out.scale, out.zero)),
        *(pictures, height, width, channels, padded, *padding, times),
        *((norm.groups, _at(norm.weight), _at(norm.bias), norm.eps) if norm else (0, None, None, 0.0)),
        GATES.index(norm.gate) if norm else 0,
        torch.get_num_threads(),
    )
    _done(_functions().sfumato_round_pictures(ctypes.byref(given)))
    return out


class Matrix:
    """A weight [O,I,kh,kw] or [O,I] and its bias [O] in the order in which the kernel reads them."""

    def __init__(self, weight: Weight, bias: Tensor | None) -> None:
        stored = weight.stored.contiguous()
        self.outputs, self.inputs = stored.shape[:2]
        self.taps = (stored.shape[2], stored.shape[3]) if stored.ndim == 4 else (1, 1)
        count = self.taps[0] * self.taps[1]
        if self.inputs * count > MOST_INPUTS:
            raise ValueError(f"a sum of {self.inputs * count} products, more than {MOST_INPUTS}")
        self.scale = weight.scale.float().contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.packed = torch.empty(
            -(-self.outputs // 16) * count * -(-self.inputs // 4) * 64, dtype=torch.int8
        )
        self.sums = torch.empty(self.outputs, dtype=torch.int32)
        _functions().sfumato_pack_weight(
            *(_at(stored), self.outputs, self.inputs, count, _at(self.packed), _at(self.sums))
        )

    def __call__(
        self, x: Stored, geometry: Geometry = POINTWISE, after: After = PLAIN, out: Tensor | None = None
    ) -> Tensor:
        """-> [B,h,w,O] float32 (in `out`), or half the O with `after.halves`. The padding is in x already."""
        pictures, height, width, inputs = x.pixels.shape
        (sy, sx), (dy, dx), (ky, kx) = geometry.stride, geometry.dilation, self.taps
        size = ((height - dy * (ky - 1) - 1) // sy + 1, (width - dx * (kx - 1) - 1) // sx + 1)
        wanted = (pictures, *size, self.outputs // 2 if after.halves else self.outputs)
        out = torch.empty(wanted) if out is None else out.view(wanted)
        shift, residual = (None if t is None else t.contiguous() for t in (after.shift, after.residual))
        if residual is not None and residual.shape != out.shape:
            raise ValueError(f"residual must be {list(out.shape)}, got {list(residual.shape)}")
        if shift is not None and shift.shape != (pictures, self.outputs):
            raise ValueError(f"shift must be [{pictures},{self.outputs}], got {list(shift.shape)}")
        given = _Product(
            *(_at(t) for t in (x.pixels, self.packed, self.scale, self.bias, self.sums)),
            *(_at(t) for t in (x.scale, x.zero, shift, residual, out)),
            *(pictures, height, width, inputs, self.outputs, *size, ky, kx, sy, sx, dy, dx),
            *(GATES.index(after.gate), int(after.halves), after.factor, torch.get_num_threads()),
        )
        _done(_functions().sfumato_product_int8(ctypes.byref(given)))
        return out


def product(
    x: Tensor, weight: Weight, bias: Tensor | None, geometry: Geometry, after: After = PLAIN
) -> Tensor:
    """Reference of a convolution: x [B,I,H,W] -> [B,O,h,w]; shift [B,O], residual [B,O,h,w]."""
    y = F.conv2d(rounded(x), restored(weight), bias, *geometry)
    return _finished(y, after)


def rows_product(x: Tensor, weight: Weight, bias: Tensor | None, after: After = PLAIN) -> Tensor:
    """Reference of a linear layer: x [M,I] -> [M,O]."""
    return _finished(F.linear(rounded(x), restored(weight), bias), after)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """Reference of the norm and its gate."""
    return _gated(F.group_norm(x, norm.groups, norm.weight, norm.bias, norm.eps), norm.gate)


def _finished(y: Tensor, after: After) -> Tensor:
    if after.halves:
        y, second = y.chunk(2, 1)
        y = y * _gated(second, after.gate)
    else:
        shift = 0 if after.shift is None else after.shift.view(*after.shift.shape, *[1] * (y.ndim - 2))
        y = _gated(y + shift, after.gate)
    return (y if after.residual is None else y + after.residual) * after.factor


def _gated(x: Tensor, gate: Gate) -> Tensor:
    if gate == "silu":
        return F.silu(x)
    return x if gate == "none" else F.gelu(x, approximate="tanh" if gate == "gelu_tanh" else "none")


@cache
def _functions() -> ctypes.CDLL:
    functions = library().functions
    assert functions is not None, library().lacking
    at, count, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    functions.sfumato_round_rows.argtypes = (at, *[count] * 4, at, at, at, threads)
    functions.sfumato_pack_weight.argtypes = (at, *[count] * 3, at, at)
    functions.sfumato_pack_weight.restype = None
    return functions


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _done(failed: int) -> None:
    if failed:
        raise MemoryError("a product in 8 bits found no memory for its sums")
