"""Safetensors files written tensor by tensor, so that no more than one is in memory; whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .errors import BadWeights
from .weights import Tensor as Entry

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAMES = {kind: name for name, kind in DTYPES.items()}
CHUNK = 1 << 22


def read_tensor(file: Path, entry: Entry) -> Tensor:
    """One tensor, by a copy of its own: a mapped file would count as memory until it is closed."""
    if entry.dtype not in DTYPES:
        raise BadWeights(f"{file}: {entry.dtype} is not computed with here; convert it to bf16")
    with file.open("rb") as stream:
        stream.seek(entry.start)
        data = bytearray(entry.end - entry.start)
        if stream.readinto(data) != len(data):
            raise BadWeights(f"{file}: truncated while it was read; copy or download it again")
    if not data:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).view(entry.shape)


class Writer:
    """Collects tensors in a file of its own; the header comes before them in the end."""

    def __init__(self, body: IO[bytes]) -> None:
        self._body, self.size = body, 0
        self._entries: dict[str, Any] = {}

    def _begin(self, name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        if name in self._entries:
            raise ValueError(f"the tensor {name} stands twice")
        self._entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [self.size, self.size + size],
        }
        self.size += size

    def add(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        self._begin(name, NAMES[tensor.dtype], tuple(tensor.shape), tensor.nbytes)
        if tensor.nbytes:
            self._body.write(tensor.reshape(-1).view(torch.uint8).numpy())

    def copy(self, name: str, file: Path, entry: Entry) -> None:
        """The tensor of another file, as it is."""
        self._begin(name, entry.dtype, entry.shape, entry.end - entry.start)
        with file.open("rb") as stream:
            stream.seek(entry.start)
            left = entry.end - entry.start
            while left:
                data = stream.read(min(left, CHUNK))
                self._body.write(data)
                left -= len(data)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        said = json.dumps({"__metadata__": dict(metadata), **self._entries}).encode()
        said += b" " * (-len(said) % 8)
        return len(said).to_bytes(8, "little") + said


@contextmanager
def writing(target: Path, metadata: dict[str, str]) -> Iterator[Writer]:
    """What is added inside becomes the file; metadata may be filled until the end. After an error there is no file."""
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as scratch:
        body, whole = Path(scratch) / "body", Path(scratch) / "whole"
        with body.open("wb") as stream:
            writer = Writer(stream)
            yield writer
        with whole.open("wb") as out, body.open("rb") as stream:
            out.write(writer.header(metadata))
            shutil.copyfileobj(stream, out, CHUNK)
        os.replace(whole, target)
