"""What is computed together with a convolution or linear layer in C++: the norm and gate before it, what comes after.

Beside the settings stand their references in plain torch, and what every call into C++ needs.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .library import library

Gate = Literal["none", "silu", "gelu", "gelu_tanh"]
GATES: tuple[Gate, ...] = ("none", "silu", "gelu", "gelu_tanh")


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


class After(NamedTuple):
    """What is done to a product: + shift [B,O], the gate, times gain [G,O], + residual (as the output), times factor.

    `over`: the output takes the residual's place, which nobody needs any more.

    An equal share of the places, in their order, has each of the G rows of `gain`.

    `halves`: the second half of the outputs goes through the gate and multiplies the first (GEGLU, arXiv:2002.05202).
    """

    gate: Gate = "none"
    halves: bool = False
    shift: Tensor | None = None
    residual: Tensor | None = None
    factor: float = 1.0
    gain: Tensor | None = None
    over: bool = False


PLAIN = After()
BLOCK = 64
"""Pixels of a block, as in norms.h."""
NORM_FIELDS = (
    ("groups", ctypes.c_int64),
    ("norm_weight", ctypes.c_void_p),
    ("norm_bias", ctypes.c_void_p),
    ("eps", ctypes.c_float),
    ("gate_before", ctypes.c_int32),
)
"""As `Norm` of norms.h."""


AROUND_FIELDS: tuple[tuple[str, type[ctypes._SimpleCData[Any]]], ...] = (
    *((name, ctypes.c_void_p) for name in ("x", "bias", "shift", "residual", "out")),
    *((name, ctypes.c_int64) for name in ("pictures", "height", "width", "inputs", "outputs", "times")),
    *NORM_FIELDS,
    ("factor", ctypes.c_float),
    ("threads", ctypes.c_int32),
)
"""As `Around` of winograd.h."""


def norm_fields(norm: Norm | None) -> tuple[int, int | None, int | None, float, int]:
    if norm is None:
        return 0, None, None, 0.0, 0
    return norm.groups, at(norm.weight), at(norm.bias), norm.eps, GATES.index(norm.gate)


def checked(after: After, out: Sequence[int]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The shift [B,O], the gain [G,O] and the residual (as out [B,...,O]), in one piece."""
    given = (after.shift, after.gain, after.residual)
    shift, gain, residual = (None if t is None else t.contiguous() for t in given)
    if residual is not None and list(residual.shape) != list(out):
        raise ValueError(f"residual must be {list(out)}, got {list(residual.shape)}")
    if shift is not None and list(shift.shape) != [out[0], out[-1]]:
        raise ValueError(f"shift must be [{out[0]},{out[-1]}], got {list(shift.shape)}")
    if gain is not None and (gain.shape[1:] != (out[-1],) or math.prod(out[:-1]) % len(gain)):
        raise ValueError(f"gain must be [G,{out[-1]}] for the places of {list(out)}, got {list(gain.shape)}")
    return shift, gain, residual


def room(like: Tensor, shape: Sequence[int], after: After, residual: Tensor | None) -> Tensor:
    """Where an output of that shape goes: a place of its own, or that of the residual, as `checked` gave it."""
    return residual if after.over and residual is not None else torch.empty(*shape, device=like.device)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """Reference of the norm and its gate: x [B,C,H,W]."""
    return _gated(F.group_norm(x, norm.groups, norm.weight, norm.bias, norm.eps), norm.gate)


def finished(y: Tensor, after: After) -> Tensor:
    """Reference of what comes after a product [B,O,...]; the residual is as the output."""
    if after.halves:
        y, second = y.chunk(2, 1)
        y = y * _gated(second, after.gate)
    else:
        shift = 0 if after.shift is None else after.shift.view(*after.shift.shape, *[1] * (y.ndim - 2))
        y = _gated(y + shift, after.gate)
    if after.gain is not None:
        gain = after.gain.repeat_interleave(len(y) // len(after.gain), 0)
        y = y * gain.view(*y.shape[:2], *[1] * (y.ndim - 2))
    return (y if after.residual is None else y + after.residual) * after.factor


def seen(x: Tensor) -> int:
    """Bytes of what the kernels measure of x [B,C,H,W], block by block, before they round or norm it."""
    batch, channels, height, width = x.shape
    return 16 * batch * channels * -(-height * width // BLOCK)


class Around:
    """What a convolution by tiles reads and writes: `Around` of winograd.h. `out` is [B,H*times,W*times,O]."""

    def __init__(
        self, x: Tensor, bias: Tensor | None, outputs: int, after: After, norm: Norm | None, times: int
    ) -> None:
        self.x = float32(x).contiguous(memory_format=torch.channels_last)
        self.bias, self.norm, self.times, self.factor = bias, norm, times, after.factor
        batch, self.inputs, height, width = x.shape
        wanted = (batch, height * times, width * times, outputs)
        self.shift, _, self.residual = checked(after, wanted)
        self.out = room(x, wanted, after, self.residual)

    def fields(self) -> tuple[float | None, ...]:
        """To be used while this lives, which holds the tensors."""
        batch, height, width, outputs = self.out.shape
        return (
            *(at(t) for t in (self.x, self.bias, self.shift, self.residual, self.out)),
            *(batch, height, width, self.inputs, outputs, self.times),
            *norm_fields(self.norm),
            *(self.factor, torch.get_num_threads()),
        )


@cache
def functions() -> ctypes.CDLL:
    found = library().functions
    assert found is not None, library().lacking
    pointer, count, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    known = (ctypes.c_float, ctypes.c_int32)
    found.sfumato_round_rows.argtypes = [pointer, *[count] * 4, *known, pointer, pointer, pointer, threads]
    found.sfumato_pack_weight.argtypes = (pointer, *[count] * 3, pointer, pointer)
    found.sfumato_pack_weight.restype = None
    return found


def float32(x: Tensor) -> Tensor:
    """The same; anything else would be read beyond its end."""
    if x.dtype != torch.float32:
        raise TypeError(f"kernels in C++ are for float32, this tensor is {x.dtype}")
    return graphless(x)


def graphless(x: Tensor) -> Tensor:
    """The same; one that asks for gradients would lose them."""
    if x.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            "this kernel gives no gradients: call it under torch.no_grad, or take the plain network"
        )
    return x


def at(tensor: Tensor | None) -> int | None:
    """Where its numbers lie."""
    if tensor is not None and tensor.device.type != "cpu":
        raise TypeError(f"kernels in C++ are for tensors in memory, this one is on {tensor.device}")
    return None if tensor is None else tensor.data_ptr()


def done(failed: int) -> None:
    if failed:
        raise MemoryError("a layer found no memory for what it holds between its stages")


def _gated(x: Tensor, gate: Gate) -> Tensor:
    if gate == "silu":
        return F.silu(x)
    return x if gate == "none" else F.gelu(x, approximate="tanh" if gate == "gelu_tanh" else "none")
