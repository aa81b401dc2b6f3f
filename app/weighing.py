"""What a model's weights take, from the headers of its files: known before anything is opened."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from ..pipelines.errors import SfumatoError
from ..pipelines.weights import read_headers, read_tensors, weight_files

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WHOLE = ("I64", "I32", "I16", "I8", "U8", "U64", "U32", "U16", "BOOL")
SKIPPED = ("safety_checker",)
STAYS = ("vae", "movq", "vqvae")
"""Parts that are not offloaded."""


class Weights(NamedTuple):
    """Bytes, in the type in which they compute."""

    total: int = 0
    staying: int = 0
    """Of the parts that are never offloaded."""
    largest: int = 0
    """The largest tensor of those that are: no less can be held."""

    @property
    def moving(self) -> int:
        return self.total - self.staying


def weigh(places: list[Path], dtype: str) -> Weights:
    """Of model folders and single files together. What can't be read weighs nothing: opening will say why."""
    total = staying = largest = 0
    for place in places:
        for name, sizes in _parts(place, dtype).items():
            total += sum(sizes)
            if name in STAYS:
                staying += sum(sizes)
            else:
                largest = max(largest, *sizes, 0)
    return Weights(total, staying, largest)


def _parts(place: Path, dtype: str) -> dict[str, list[int]]:
    """Bytes of every tensor, by part."""
    try:
        if place.is_file():
            return {"": [_size(t.dtype, t.shape, dtype) for t in read_tensors(place).values()]}
        homes = sorted({file.parent for file in place.rglob("*.safetensors")})
        found = {}
        for home in homes:
            if home.name in SKIPPED or not (home / "config.json").is_file():
                continue
            headers = read_headers(weight_files(home).files)
            found[home.name] = [_size(t.dtype, t.shape, dtype) for _, t in headers.values()]
        return found
    except (SfumatoError, OSError):
        return {}


def _size(kind: str, shape: tuple[int, ...], dtype: str) -> int:
    """Packed codes stay as they are; all other numbers are computed in `dtype`."""
    from ..pipelines.weights import DTYPES

    each = DTYPES[kind] if kind in WHOLE or kind not in DTYPES else BYTES.get(dtype, 4)
    return math.prod(shape) * each
