"""Safetensors files, distrusted: headers are bounds-checked before a library reads them, tensors are hashed.

A safetensors file is 8 bytes (little-endian header length), a JSON header, and one run of bytes that tensors
share out without gap or overlap. Other weight formats can run code when they are opened, so they are refused.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import BadWeights
from .stopping import poll

HEADER_LIMIT = 100_000_000
"""Bytes; the format's own limit."""
SHORT, SHARE = 1 << 20, 20
"""A header of more bytes than SHORT must be no more than one part in SHARE of its file: what is read from a header may
take 30 times its bytes, and must not take more than the weights would."""

JSON_LIMIT = 20_000_000
"""Bytes; the largest shard indexes and configs in the wild have a few MB."""

DTYPES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2}
DTYPES |= {"BF16": 2, "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8}
"""Bytes per element."""

STEMS = ("diffusion_pytorch_model", "model")
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
REMEDY = "convert it: `sfumato models convert {file} --output OUT.safetensors`"


class Tensor(NamedTuple):
    """One entry of a header. `start` and `end` are bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class WeightFiles(NamedTuple):
    """The files of one component, and the variant in their names ("fp16"), if there is one."""

    files: tuple[Path, ...]
    variant: str | None


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. BadWeights unless every byte of the file is accounted for."""
    header, base, size = _read(file)
    header.pop("__metadata__", None)
    tensors = {name: _entry(name, value, base, file) for name, value in header.items()}
    at = base
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start != at:
            raise BadWeights(
                f"{file}: tensor {name!r} begins at byte {tensor.start}, {at} expected; the file is damaged"
            )
        at = tensor.end
    if at != size:
        state = "truncated" if size < at else "longer than its header says"
        raise BadWeights(f"{file}: {state}, {size} bytes where {at} are expected; copy or download it again")
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """The texts that a safetensors file says about itself; what is no text is left out."""
    found = _read(file)[0].get("__metadata__")
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def _read(file: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON header, the byte at which tensors begin, and the bytes of the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8:
                raise BadWeights(
                    f"{file}: only {size} bytes long, not a safetensors file; copy or download it again"
                )
            if length > min(size - 8, HEADER_LIMIT):
                raise BadWeights(
                    f"{file}: {_suspicion(head, file)}, header of {length} bytes in a file of {size}"
                )
            if length > longest_header(size):
                raise BadWeights(
                    f"{file}: its header has {length} of {size} bytes, no weights need so many; download it again"
                )
            raw = stream.read(length)
    except OSError as error:
        raise BadWeights(
            f"{file}: cannot be read ({error.strerror}); check that it exists and is a file"
        ) from error
    return _parse(raw, file), 8 + length, size


def longest_header(size: int) -> int:
    """Bytes of the longest header that is read in a file of `size` bytes."""
    return max(SHORT, size // SHARE)


def _suspicion(head: bytes, file: Path) -> str:
    if head[:1] == b"\x80" or head[:2] == b"PK":
        return f"a pickle or zip under a .safetensors name ({REMEDY.format(file=file)})"
    return "not a safetensors file, or truncated (copy or download it again)"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _parse(raw: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadWeights(
            f"{file}: its JSON cannot be read ({str(error)[:80]}); copy or download it again"
        ) from error
    if not isinstance(value, dict):
        raise BadWeights(
            f"{file}: its JSON is a {type(value).__name__}, not an object; copy or download it again"
        )
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _entry(name: str, value: Any, base: int, file: Path) -> Tensor:
    """One checked entry. Products of hostile shapes are stopped before they grow."""
    bad = f"{file}: tensor {name[:80]!r} has "
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise BadWeights(f"{bad}no plain dtype, shape and data_offsets; the header is damaged")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadWeights(f"{bad}the dtype {str(dtype)[:40]!r}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > 16 or not all(map(_is_count, shape)):
        raise BadWeights(f"{bad}the shape {str(shape)[:60]}; at most 16 whole numbers are allowed")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise BadWeights(f"{bad}the offsets {str(offsets)[:60]}; two whole numbers are needed")
    start, end = offsets
    needed = DTYPES[dtype]
    for axis in shape:
        needed *= axis
    if end - start != needed:
        raise BadWeights(
            f"{bad}{end - start} bytes where {dtype} {shape} needs {needed}; the header is damaged"
        )
    return Tensor(dtype, tuple(shape), base + start, base + end)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file of sane size."""
    try:
        size = file.stat().st_size
        if size > JSON_LIMIT:
            raise BadWeights(f"{file}: {size} bytes are too many for a config; the limit is {JSON_LIMIT}")
        return _parse(file.read_bytes(), file)
    except OSError as error:
        raise BadWeights(
            f"{file}: cannot be read ({error.strerror}); the model folder is incomplete"
        ) from error


def weight_files(folder: Path) -> WeightFiles:
    """The weight files of one component, in the order in which diffusers and transformers look for them."""
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return WeightFiles(_shards(index), None)
        if (folder / f"{stem}.safetensors").exists():
            return WeightFiles((folder / f"{stem}.safetensors",), None)
    for stem in STEMS:
        for file in sorted(folder.glob(f"{stem}.*.safetensors")):
            variant = file.name.split(".")[1]
            if "-of-" not in variant:
                return WeightFiles((file,), variant)
    unsafe = (
        sorted(file.name for file in folder.glob("*") if file.suffix in UNSAFE) if folder.is_dir() else []
    )
    if unsafe:
        raise refused(folder / unsafe[0])
    raise BadWeights(
        f"{folder}: holds no .safetensors file; the model folder is incomplete, download it again"
    )


def refused(file: Path) -> BadWeights:
    """The answer to a pickle, and to whatever else may hold one."""
    return BadWeights(
        f"{file.parent}: {file.name} can run code when it is opened, so it is refused; "
        + REMEDY.format(file=file)
    )


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadWeights(f"{index}: has no weight_map; copy or download it again")
    names = {str(name) for name in weight_map.values()}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BadWeights(f"{index}: the shard {name[:80]!r} is not a .safetensors file beside the index")
        if not (index.parent / name).is_file():
            raise BadWeights(f"{index.parent / name}: the shard is missing; download it again")
    return tuple(index.parent / name for name in sorted(names))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The header of a safetensors or GGUF file."""
    if file.suffix.lower() == ".gguf":
        from .doors.gguf_header import read_gguf

        return read_gguf(file).tensors
    return read_header(file)


def read_headers(files: Iterable[Path]) -> dict[str, tuple[Path, Tensor]]:
    """The tensors of all shards of a component: name to file and entry."""
    found: dict[str, tuple[Path, Tensor]] = {}
    for file in files:
        for name, tensor in read_tensors(file).items():
            if name in found:
                raise BadWeights(
                    f"{file}: tensor {name!r} also stands in {found[name][0].name}; download both again"
                )
            found[name] = (file, tensor)
    return found


def tensor_hash(source: Path | Sequence[Path]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors: other metadata or sharding give the same.

    `source` is a safetensors file, the shards of one component, or a folder (a component or a whole model).
    """
    if isinstance(source, Path) and source.is_dir():
        homes = sorted({file.parent for file in source.rglob("*.safetensors")})
        groups = [(home.relative_to(source).as_posix(), weight_files(home).files) for home in homes]
    else:
        groups = [(".", (source,) if isinstance(source, Path) else tuple(source))]
    digest = hashlib.sha256()
    for prefix, files in groups:
        for name, (file, tensor) in sorted(read_headers(files).items()):
            poll()
            digest.update(json.dumps([prefix, name, tensor.dtype, tensor.shape]).encode())
            _feed(digest, file, tensor)
    return digest.hexdigest()


def _feed(digest: Any, file: Path, tensor: Tensor) -> None:
    if tensor.end == tensor.start:
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for at in range(tensor.start, tensor.end, 1 << 22):
            digest.update(data[at : min(at + (1 << 22), tensor.end)])
