"""What a model's weights take: by the headers of its files before it is opened, then as its converts left it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from ..kernels.native.around import available as native
from ..kernels.offload import offloaded
from ..kernels.quant.layers import by_tiles, untold
from ..kernels.quant.packed import packable
from ..kernels.winograd import fits
from ..pipelines.converts._layers import chosen
from ..pipelines.converts.int8 import Int8
from ..pipelines.errors import SfumatoError
from ..pipelines.families._common import Checkpoint
from ..pipelines.placement import STAYS
from ..pipelines.protocols import Model
from ..pipelines.weights import Tensor as Header
from ..pipelines.weights import read_headers, read_tensors, weight_files

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WHOLE = ("I64", "I32", "I16", "I8", "U8", "U64", "U32", "U16", "BOOL")
SKIPPED = ("safety_checker",)
DENOISERS = ("unet", "transformer")
IN_8_BITS, LESS = Int8(), 3
"""The convert, and the bytes that it saves of each weight in float32."""


class Weights(NamedTuple):
    """Bytes, in the type in which they compute."""

    total: int = 0
    staying: int = 0
    """Of the parts that are never offloaded, and what is in no tensor of a layer."""
    largest: int = 0
    """The largest layer of those that are: no less can be held."""
    saved: int = 0
    """How many fewer it would be with the denoising network in 8 bits; before it is opened 0 where nobody knows."""

    @property
    def in_8_bits(self) -> Weights:
        return Weights(self.total - self.saved, self.staying, self.largest)

    @property
    def moving(self) -> int:
        return self.total - self.staying


def weighed(model: Model, before: Weights) -> Weights:
    """Of an opened model; `before` where that can't be told of its kind."""
    if not isinstance(model, Checkpoint):
        return before
    total = staying = largest = 0
    saved = _saved(model.denoise.net)
    for name, net in {id(part.net): (name, part.net) for name, part in model.parts.items()}.values():
        seen: set[int] = set()
        own = beside = 0
        for layer in net.modules():
            mine = 0
            for tensor in _tensors(layer):
                mine += tensor.numel() * tensor.itemsize if id(tensor) not in seen else 0
                seen.add(id(tensor))
            beside += untold(layer)
            own += mine
            largest = largest if name in STAYS else max(largest, mine)
        total += own + beside
        staying += beside + (own if name in STAYS else 0)
    return Weights(total, staying, largest, saved)


def _saved(net: nn.Module) -> int:
    if offloaded(net) is not None:
        return 0
    layers = chosen(net, skip=IN_8_BITS.skip, smallest=IN_8_BITS.smallest)
    found = (packable(layer) for _, layer in layers)
    return sum(
        _spared(tuple(layer.weight.shape), square=isinstance(layer, nn.Conv2d) and fits(layer))
        for layer in found
        if layer is not None
    )


def _spared(shape: tuple[int, ...], *, square: bool) -> int:
    """Bytes of a weight; `square`: it is of a 3 x 3 convolution that can go by tiles."""
    tiled = square and native() is None and by_tiles(shape, IN_8_BITS.tiled)
    return math.prod(shape) * 20 // 9 if tiled else LESS * math.prod(shape)


def _tensors(layer: nn.Module) -> list[Tensor]:
    """Those of a layer itself; their sizes are the same where they are offloaded."""
    return [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]


def weigh(places: list[Path], dtype: str) -> Weights:
    """Of model folders and single files together. What can't be read weighs nothing: opening will say why."""
    total = staying = largest = saved = 0
    for place in places:
        for name, (sizes, spared) in _parts(place, dtype).items():
            total += sum(sizes.values())
            saved += spared if name.startswith(DENOISERS) else 0
            if name in STAYS:
                staying += sum(sizes.values())
            else:
                largest = max(largest, *sizes.values(), 0)
    return Weights(total, staying, largest, saved)


def _less(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """`saved` by the names and shapes of tensors; what is in no layer of 8 bits after all is little."""
    total = 0
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        count = math.prod(shape)
        skipped = any(fnmatchcase(layer, one) for one in IN_8_BITS.skip)
        if kind == "weight" and len(shape) in (2, 4) and count >= IN_8_BITS.smallest and not skipped:
            total += _spared(shape, square=shape[2:] == (3, 3))
    return total


def _parts(place: Path, dtype: str) -> dict[str, tuple[Counter[str], int]]:
    """Bytes of every layer, by part, and `saved` if all lie in a file as float32, so that they are read one by one."""
    try:
        if place.is_file():
            return {"": (_layers(read_tensors(place).items(), dtype), 0)}
        homes = sorted({file.parent for file in place.rglob("*.safetensors")})
        found = {}
        for home in homes:
            if home.name in SKIPPED or not (home / "config.json").is_file():
                continue
            headers = read_headers(weight_files(home).files)
            as_is = dtype == "float32" and all(t.dtype == "F32" for _, t in headers.values())
            tensors = {name: tensor for name, (_, tensor) in headers.items()}
            spared = _less({name: tuple(t.shape) for name, t in tensors.items()}) if as_is else 0
            found[home.name] = _layers(tensors.items(), dtype), spared
        return found
    except (SfumatoError, OSError):
        return {}


def _layers(tensors: Iterable[tuple[str, Header]], dtype: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, tensor in tensors:
        found[name.rpartition(".")[0]] += _size(tensor.dtype, tensor.shape, dtype)
    return found


def _size(kind: str, shape: tuple[int, ...], dtype: str) -> int:
    """Packed codes stay as they are; all other numbers are computed in `dtype`."""
    from ..pipelines.weights import DTYPES

    each = DTYPES[kind] if kind in WHOLE or kind not in DTYPES else BYTES.get(dtype, 4)
    return math.prod(shape) * each
