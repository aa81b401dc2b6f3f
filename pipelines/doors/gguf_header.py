"""GGUF headers, distrusted: every length is checked against the file before it is believed.

A GGUF file is a magic word, counts, key and value pairs, one entry per tensor, and the tensors' bytes, each at a
multiple of the alignment. Sizes of the quantised types are those of the format (elements and bytes per block).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import BadWeights
from ..weights import Tensor, longest_header

HEADER_LIMIT = 32_000_000
"""Bytes; headers of diffusion models have a few hundred KB, those with a large vocabulary some MB."""
ITEM_LIMIT = 1 << 20
"""Most tensors, keys, and strings of one array."""
KEPT = 16
"""Longest array whose values are kept; of longer ones only the length is."""

BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Type number to name, elements and bytes per block."""

NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY = 8, 9


class Gguf(NamedTuple):
    """What the header says. Shapes are in the order of torch, the last axis the fastest."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class _Cursor:
    """Reads forward, and never more than the file or the limit holds."""

    def __init__(self, stream: BinaryIO, size: int, file: Path) -> None:
        self.stream, self.file, self.size = stream, file, size
        self.left = min(size, HEADER_LIMIT, longest_header(size))
        self.at = 0

    def fail(self, what: str) -> BadWeights:
        return BadWeights(f"{self.file}: {what}; the GGUF file is damaged, copy or download it again")

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.fail(f"the header wants {count} more bytes, {self.left} are left")
        data = self.stream.read(count)
        if len(data) != count:
            raise self.fail("the header ends early")
        self.left -= count
        self.at += count
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, what: str, code: str = "<Q") -> int:
        found = int(self.number(code))
        if found > ITEM_LIMIT:
            raise self.fail(f"{found} {what} are too many")
        return found

    def text(self) -> str:
        try:
            return self.take(int(self.number("<Q"))).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail("a name in the header is not text") from error

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.fail(f"a value has the unknown type {kind}")
        return self.array(int(self.number("<I")))

    def array(self, kind: int) -> Any:
        """The values of a short array, the length of a long one. Arrays in arrays do not occur."""
        if kind == STRING:
            length = self.count("strings in an array")
            if length <= KEPT:
                return [self.text() for _ in range(length)]
            for _ in range(length):
                self.text()
            return length
        if kind not in NUMBERS:
            raise self.fail(f"an array has the unknown type {kind}")
        length, width = int(self.number("<Q")), struct.calcsize(NUMBERS[kind])
        data = self.take(length * width)
        return [v for (v,) in struct.iter_unpack(NUMBERS[kind], data)] if length <= KEPT else length


def read_gguf(file: Path) -> Gguf:
    """The header of a GGUF file. BadWeights unless every tensor lies within the file, apart from the others."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            cursor = _Cursor(stream, size, file)
            magic = cursor.take(4) if size >= 4 else b""
            if magic != b"GGUF":
                raise BadWeights(f"{file}: not a GGUF file; give a .gguf file, or copy it again")
            return _read(cursor)
    except OSError as error:
        raise BadWeights(
            f"{file}: cannot be read ({error.strerror}); check that it exists and is a file"
        ) from error


def _read(cursor: _Cursor) -> Gguf:
    version = cursor.number("<I")
    if version not in (2, 3):
        raise cursor.fail(f"GGUF version {version} is not known (2 and 3 are)")
    tensors, keys = cursor.count("tensors"), cursor.count("keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        name = cursor.text()
        metadata[name] = cursor.value(int(cursor.number("<I")))
    entries = [_entry(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment % 8:
        raise cursor.fail(f"the alignment {str(alignment)[:40]!r} is no multiple of 8")
    base = -(-cursor.at // alignment) * alignment
    found: dict[str, Tensor] = {}
    for name, dtype, shape, offset, length in entries:
        if name in found:
            raise cursor.fail(f"tensor {name[:80]!r} stands twice")
        if offset % alignment or base + offset + length > cursor.size:
            raise cursor.fail(f"tensor {name[:80]!r} lies outside the file or off its alignment")
        found[name] = Tensor(dtype, shape, base + offset, base + offset + length)
    _check_apart(found, cursor)
    return Gguf(metadata, found)


def _entry(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int, int]:
    """Name, type, shape, offset and bytes of one tensor."""
    name, axes = cursor.text(), int(cursor.number("<I"))
    if axes > 4:
        raise cursor.fail(f"tensor {name[:80]!r} has {axes} axes, 4 are allowed")
    shape = tuple(int(cursor.number("<Q")) for _ in range(axes))[::-1]
    kind, offset = int(cursor.number("<I")), int(cursor.number("<Q"))
    if kind not in BLOCKS:
        raise cursor.fail(f"tensor {name[:80]!r} has the unknown type {kind}")
    dtype, elements, width = BLOCKS[kind]
    row = shape[-1] if shape else 1
    if row % elements:
        raise cursor.fail(f"tensor {name[:80]!r} has rows of {row}, {dtype} needs multiples of {elements}")
    length = width * (row // elements)
    for axis in shape[:-1]:
        length *= axis
    return name, dtype, shape, offset, length


def _check_apart(tensors: dict[str, Tensor], cursor: _Cursor) -> None:
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start < at:
            raise cursor.fail(f"tensor {name[:80]!r} overlaps another")
        at = tensor.end
