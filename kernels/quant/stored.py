"""Packed layers as they lie in a checkpoint: checked against the layer they stand for, made again, joined, measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .activations import activation_of
from .formats import Format, format_of
from .packed import Layer, QuantConv2d, QuantLinear, matrix_shape, packed

BESIDE = (
    *("pre_quant_scale", "low_down", "low_up", "outlier_rows", "outlier_columns", "outlier_values"),
    *("input_noise", "noise_output", "first_input", "first_output"),
)
"""Tensors that a layer may hold beside those of its format."""
TOGETHER = (
    ("low_down", "low_up"),
    ("outlier_rows", "outlier_columns", "outlier_values"),
    ("input_noise", "noise_output"),
    ("first_input", "first_output"),
)


def restored(layer: Layer, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The packed layer for this plain one, which may be on meta but for its bias. ValueError if they do not fit."""
    form = format_of(spec)
    activation = activation_of(dict(spec["activation"])) if spec.get("activation") else None
    _check(layer, form, tensors)
    return packed(layer, form, tensors, activation)


def _check(layer: Layer, form: Format, tensors: Mapping[str, Tensor]) -> None:
    wanted = form.shapes(*matrix_shape(layer))
    for name, (shape, kind) in wanted.items():
        if name not in tensors:
            raise ValueError(f"{form.name} needs the tensor {name}")
        found = tensors[name]
        if tuple(found.shape) != shape or (found.dtype != kind and not found.is_floating_point()):
            raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, {kind} {list(shape)} expected")
    strange = sorted(set(tensors) - set(wanted) - set(BESIDE))
    if strange:
        raise ValueError(f"{strange[0]} is no tensor of {form.name}")
    for names in TOGETHER:
        if 0 < len(set(names) & set(tensors)) < len(names):
            raise ValueError(f"{', '.join(names)} come together")
    _check_beside(layer, tensors)


def _check_beside(layer: Layer, tensors: Mapping[str, Tensor]) -> None:
    rows, count = matrix_shape(layer)
    into = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    lengths = {"pre_quant_scale": into, "input_noise": into, "first_input": into}
    lengths |= {"noise_output": rows, "first_output": rows, "outlier_rows": rows + 1}
    for name, length in lengths.items():
        if name in tensors and tuple(tensors[name].shape) != (length,):
            raise ValueError(f"{name} has the shape {list(tensors[name].shape)}, [{length}] expected")
    if "low_up" in tensors:
        rank = tensors["low_up"].shape[-1]
        if tuple(tensors["low_up"].shape) != (rows, rank) or tuple(tensors["low_down"].shape) != (
            rank,
            count,
        ):
            raise ValueError("low_down and low_up do not fit the layer")
    if "outlier_rows" in tensors:
        ends, columns = tensors["outlier_rows"].long(), tensors["outlier_columns"]
        fits = int(ends[0]) == 0 and bool((ends.diff() >= 0).all()) and int(ends[-1]) == len(columns)
        if not fits or len(columns) != len(tensors["outlier_values"]):
            raise ValueError("outlier_rows does not count the outliers")
        if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < count:
            raise ValueError("outlier_columns point beyond the weight")


def joined(layer: QuantLinear | QuantConv2d, down: Tensor, up: Tensor) -> None:
    """Add up @ down to what the layer computes, through its low-rank branch: the packed weight stays as it is.

    down [r,N] and up [O,r] are for the layer's own input; the branch sees it divided by `pre_quant_scale`.
    """
    if isinstance(layer, QuantConv2d) and layer.groups > 1:
        raise ValueError("a low-rank branch of a convolution in groups is not possible")
    smooth, held_down, held_up = (layer.held(name) for name in ("pre_quant_scale", "low_down", "low_up"))
    if smooth is not None:
        spread = layer.count // len(smooth)
        down = down * smooth.to(down.dtype).repeat_interleave(spread)
    if held_down is not None and held_up is not None:
        down, up = (
            torch.cat([held_down, down.to(held_down)]),
            torch.cat([held_up, up.to(held_up)], 1),
        )
    layer.register_buffer("low_down", down.contiguous())
    layer.register_buffer("low_up", up.contiguous())


def low_rank(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best down [r,N] and up [O,r] of a matrix [O,N], the singular values shared out between both.

    Exact for small matrices; for large ones by random projection with four power iterations, with a seed of its own.
    """
    rank = min(rank, *weight.shape)
    if rank == 0:
        return weight.new_zeros(0, weight.shape[1]), weight.new_zeros(len(weight), 0)
    if min(weight.shape) <= 1024:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        v = v.mT
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(weight, q=min(2 * rank + 8, *weight.shape), niter=4)
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).mT.contiguous(), (u[:, :rank] * root).contiguous()


def held_bytes(net: nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
