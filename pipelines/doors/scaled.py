"""Single files whose weights lie beside their scales, in the layout that ComfyUI writes: back to plain weights.

Which layers, and how, stands in the header under `_quantization_metadata`, or in a small tensor `comfy_quant` beside
each: JSON either way. float8 with one scale, and 8-bit whole numbers with one scale, one per row or one per block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadWeights
from ..packed_header import layers_of
from ..weight_writer import read_tensor
from ..weights import read_tensors

READABLE = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_blockwise")
BESIDE = ("weight_scale", "input_scale", "comfy_quant")
MARK = ".comfy_quant"


def scaled_layers(file: Path) -> dict[str, dict[str, Any]]:
    """Layer to what its tensors mean; empty for a file that does not say. Such as cannot be read are refused."""
    if file.suffix.lower() == ".gguf":
        return {}
    found = layers_of(file)
    for name, entry in read_tensors(file).items():
        if name.endswith(MARK) and entry.end - entry.start < 10_000:
            found.setdefault(name.removesuffix(MARK), _said(file, read_tensor(file, entry)))
    for name, spec in found.items():
        if spec.get("format") not in READABLE or spec.get("convrot"):
            raise BadWeights(
                f"{file}: {name} is in {str(spec.get('format'))[:40]}"
                f"{', rotated' if spec.get('convrot') else ''}; {', '.join(READABLE)}, bf16, fp16 or GGUF opens"
            )
    return found


def _said(file: Path, mark: Tensor) -> dict[str, Any]:
    try:
        found = json.loads(bytes(mark.flatten().view(torch.uint8).tolist()))
    except (ValueError, RecursionError) as error:
        raise BadWeights(f"{file}: a {MARK[1:]} cannot be read; download it again") from error
    return found if isinstance(found, dict) else {}


def plain(
    tensors: Mapping[str, Tensor], layers: Mapping[str, Mapping[str, Any]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors with each such layer's weight times its scale, and the scales gone."""
    found = dict(tensors)
    for name, spec in layers.items():
        if f"{name}.weight" not in found:
            continue
        beside = {key: found.pop(f"{name}.{key}", None) for key in BESIDE}
        scale = beside["weight_scale"]
        weight = found[f"{name}.weight"].float()
        if scale is not None:
            weight = weight * _spread(name, scale.float(), weight, spec)
        found[f"{name}.weight"] = weight.to(dtype)
    found.pop("scaled_fp8", None)
    return found


def _spread(name: str, scale: Tensor, weight: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """The scale of each weight [O,...]."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.numel() == len(weight) and spec.get("format") != "int8_blockwise":
        return scale.reshape(-1, *[1] * (weight.ndim - 1))
    group = spec.get("group_size", 128)
    if weight.ndim == 2 and type(group) is int and scale.ndim == 2:
        blocks = scale.repeat_interleave(group, 0).repeat_interleave(group, 1)
        if blocks.shape == weight.shape:
            return blocks
    raise BadWeights(f"{name}.weight_scale {list(scale.shape)} fits no weight {list(weight.shape)}")
