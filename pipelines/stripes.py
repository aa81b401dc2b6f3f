"""An autoencoder that works through its large layers in stripes of rows: the same picture in about half the memory.

    undo = stripe(model.codec.vae)

A convolution needs one row above and below a stripe. What is not local is the group norm, whose mean and variance are
taken over the whole picture first, stripe by stripe, and merged (Chan et al. 1983). So no seam can arise and nothing is
computed twice: the result differs from the whole pass by rounding alone. A layer of no more than one stripe is left as
it is, to the bit.

What is held at once is the input and the output of one layer; the normalised, activated and reordered copies between
them, which take as much again, exist for one stripe at a time. Blocks of layers that were exchanged stay as they are:
those by Winograd's tiles hold no such copies (`converts/_around.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIPE = 1 << 23
"""Most bytes of a stripe of a layer's input."""
FEWEST = 8
"""Stripes of a layer that does not go whole; a stripe has 4 rows at least."""

Act = Callable[[Tensor], Tensor]


class Norm(NamedTuple):
    """A group norm whose statistics are known: y = scale x + shift, each [B,C,1,1]."""

    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def stripe(vae: nn.Module, size: int = STRIPE) -> Callable[[], None]:
    """Let the large layers of an autoencoder of diffusers go in stripes of `size` bytes. What comes back undoes it."""
    if size < 1:
        raise ValueError(f"size must be 1 byte or more, got {size}")
    changed: list[nn.Module] = []

    def put(module: nn.Module, forward: Callable[..., Tensor]) -> None:
        vars(module)["forward"] = forward
        changed.append(module)

    for module in vae.modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D" and _plain_block(module):
            put(module, _block(module, size))
        elif kind == "Upsample2D" and _plain_upsampler(module):
            put(module, _upsampler(module, size))
        elif kind == "Downsample2D" and _plain_downsampler(module):
            put(module, _downsampler(module, size))
        elif kind == "Decoder" and _plain_head(module):
            norm, act, last = _head(module, size)
            put(module.get_submodule("conv_norm_out"), norm)
            put(module.get_submodule("conv_act"), act)
            put(module.get_submodule("conv_out"), last)

    def undo() -> None:
        for module in changed:
            vars(module).pop("forward", None)
        changed.clear()

    return undo


def rows_of(x: Tensor, size: int) -> list[tuple[int, int]]:
    """First and last-but-one row of each stripe of x [B,C,H,W]."""
    height = x.shape[2]
    if x.nbytes <= size:
        return [(0, height)]
    each = max(4, min(size // max(1, x.nbytes // height), height // FEWEST))
    return [(first, min(first + each, height)) for first in range(0, height, each)]


def small(x: Tensor, size: int) -> bool:
    return len(rows_of(x, size)) < 2


def statistics(norm: Any, stripes: Iterator[Tensor]) -> Norm:
    """Of all rows together: means and variances of the stripes, merged in double precision."""
    count, mean, square = 0, torch.zeros(()), torch.zeros(())
    like = None
    for x in stripes:
        like = x
        flat = x.reshape(len(x), norm.num_groups, -1).float()
        variance, middle = (t.double() for t in torch.var_mean(flat, dim=2, correction=0))
        more, off = flat.shape[2], middle - mean.to(middle)
        total = count + more
        square = square.to(middle) + variance * more + off.square() * (count * more / total)
        mean = mean.to(middle) + off * (more / total)
        count = total
    assert like is not None
    channels = norm.num_channels // norm.num_groups
    rstd = (square / count + norm.eps).rsqrt().repeat_interleave(channels, 1)
    scale = norm.weight.double() * rstd
    shift = norm.bias.double() - mean.repeat_interleave(channels, 1) * scale
    return Norm(scale.to(like.dtype)[..., None, None], shift.to(like.dtype)[..., None, None])


def local(x: Tensor, rows: tuple[int, int], act: Act, layer: Any) -> Tensor:
    """These rows of a 3 x 3 convolution, padded by 1, of act(x)."""
    first, last = rows
    above, below = max(first - 1, 0), min(last + 1, x.shape[2])
    padded = F.pad(act(x[:, :, above:below]), (0, 0, above - first + 1, last + 1 - below))
    return F.conv2d(padded, layer.weight, layer.bias, padding=(0, 1))


def room_like(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(len(x), channels, height, width, dtype=x.dtype, device=x.device, memory_format=layout)


def _block(block: Any, size: int) -> Callable[..., Tensor]:
    whole = block.forward

    def forward(x: Tensor, temb: Tensor | None = None) -> Tensor:
        if temb is not None or small(x, size) or not _plain_block(block):
            out: Tensor = whole(x, temb)
            return out
        rows, act = rows_of(x, size), block.nonlinearity
        first = statistics(block.norm1, (x[:, :, a:b] for a, b in rows))
        h = room_like(x, block.conv1.out_channels, *x.shape[2:])
        for a, b in rows:
            h[:, :, a:b] = local(x, (a, b), lambda part: act(first(part)), block.conv1)
        second = statistics(block.norm2, (h[:, :, a:b] for a, b in rows))
        _in_place(block, x, h, rows, lambda part: act(second(part)))
        return h

    return forward


def _in_place(block: Any, x: Tensor, h: Tensor, rows: list[tuple[int, int]], act: Act) -> None:
    """The second convolution and the shortcut, into h itself; the row above a stripe is kept from before it changed."""
    above = h[:, :, :0]
    for a, b in rows:
        below = min(b + 1, h.shape[2])
        part = torch.cat([above, h[:, :, a:below]], dim=2)
        skip = len(above[0, 0])
        above = h[:, :, b - 1 : b].clone()
        beside = x[:, :, a:b] if block.conv_shortcut is None else block.conv_shortcut(x[:, :, a:b])
        made = local(part, (skip, skip + b - a), act, block.conv2)
        h[:, :, a:b] = (beside + made) / block.output_scale_factor


def _upsampler(layer: Any, size: int) -> Callable[..., Tensor]:
    whole, conv = layer.forward, layer.conv

    def forward(x: Tensor, output_size: Any = None, *rest: Any) -> Tensor:
        if output_size is not None or rest or len(rows_of(x, size // 4)) < 2:
            out: Tensor = whole(x, output_size, *rest)
            return out
        height = x.shape[2]
        out = room_like(x, conv.out_channels, 2 * height, 2 * x.shape[3])
        for a, b in rows_of(x, size // 4):
            above, below = max(a - 1, 0), min(b + 1, height)
            wide = F.interpolate(x[:, :, above:below], scale_factor=2.0, mode="nearest")
            first = 2 * (a - above)
            out[:, :, 2 * a : 2 * b] = local(wide, (first, first + 2 * (b - a)), _same, conv)
        return out

    return forward


def _downsampler(layer: Any, size: int) -> Callable[..., Tensor]:
    whole, conv = layer.forward, layer.conv

    def forward(x: Tensor, *rest: Any) -> Tensor:
        if rest or x.shape[2] % 2 or small(x, size):
            out: Tensor = whole(x, *rest)
            return out
        height = x.shape[2] // 2
        out = room_like(x, conv.out_channels, height, (x.shape[3] + 1 - 3) // 2 + 1)
        for a, b in rows_of(out, max(1, size // 4)):
            part = x[:, :, 2 * a : min(2 * b + 1, 2 * height)]
            padded = F.pad(part, (0, 1, 0, 2 * (b - a) + 1 - part.shape[2]))
            out[:, :, a:b] = F.conv2d(padded, conv.weight, conv.bias, stride=2)
        return out

    return forward


def _head(decoder: Any, size: int) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Norm, activation and convolution, each a module of its own: the last one does the work of all three."""
    norm, act, conv = decoder.conv_norm_out, decoder.conv_act, decoder.conv_out
    whole_norm, whole_act, whole_conv = norm.forward, act.forward, conv.forward
    known: list[Norm] = []

    def normed(x: Tensor) -> Tensor:
        known.clear()
        if small(x, size):
            out: Tensor = whole_norm(x)
            return out
        known.append(statistics(norm, (x[:, :, a:b] for a, b in rows_of(x, size))))
        return x

    def acted(x: Tensor) -> Tensor:
        out: Tensor = x if known else whole_act(x)
        return out

    def convolved(x: Tensor) -> Tensor:
        if not known:
            out: Tensor = whole_conv(x)
            return out
        first = known.pop()
        parts = [local(x, rows, lambda part: whole_act(first(part)), conv) for rows in rows_of(x, size)]
        return torch.cat(parts, dim=2)

    return normed, acted, convolved


def _same(x: Tensor) -> Tensor:
    return x


def _three(layer: Any, *, stride: int = 1, padding: int = 1) -> bool:
    plain = isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.groups == 1
    return plain and layer.stride == (stride, stride) and layer.padding == (padding, padding)


def _grouped(norm: Any) -> bool:
    return isinstance(norm, nn.GroupNorm) and norm.affine


def _plain_block(block: Any) -> bool:
    moves = block.upsample is not None or block.downsample is not None
    told = block.time_emb_proj is not None or block.training
    convs, norms = (
        _three(block.conv1) and _three(block.conv2),
        _grouped(block.norm1) and _grouped(block.norm2),
    )
    beside = block.conv_shortcut
    return convs and norms and not moves and not told and (beside is None or beside.kernel_size == (1, 1))


def _plain_upsampler(layer: Any) -> bool:
    plain = layer.use_conv and not layer.use_conv_transpose and layer.norm is None and layer.interpolate
    return bool(plain) and layer.name == "conv" and _three(layer.conv)


def _plain_downsampler(layer: Any) -> bool:
    plain = layer.use_conv and layer.norm is None and layer.padding == 0
    return bool(plain) and _three(layer.conv, stride=2, padding=0)


def _plain_head(decoder: Any) -> bool:
    return _grouped(decoder.conv_norm_out) and _three(decoder.conv_out)
