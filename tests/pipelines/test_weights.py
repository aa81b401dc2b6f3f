"""The header checker believes nothing: every damage is one BadWeights, and nothing large is allocated."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sfumato.pipelines.errors import BadWeights
from sfumato.pipelines.weights import SHARE, SHORT, read_header, tensor_hash, weight_files


def write(file: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return file


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.zeros(0),
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def test_good_file(good: Path) -> None:
    tensors = read_header(good)
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        "a": ("BF16", (3,)),
        "b": ("F32", (2, 3)),
        "none": ("F32", (0,)),
    }
    b = tensors["b"]
    assert good.read_bytes()[b.start : b.end] == torch.arange(6.0).numpy().tobytes()


BAD = {
    "no object": [1],
    "not json": b"{",
    "not text": b"\xff\xfe",
    "deep": b"[" * 50_000,
    "huge number": b'{"a":' + b"9" * 5000 + b"}",
    "twice": b'{"a":1,"a":2}',
    "entry": {"a": 3},
    "unknown dtype": {"a": entry("Q4")},
    "dtype list": {"a": entry(dtype=["F32"])},
    "missing field": {"a": {"dtype": "F32", "shape": [2]}},
    "negative axis": {"a": entry(shape=(-2,))},
    "bool axis": {"a": entry(shape=(True, 2))},
    "float axis": {"a": entry(shape=(2.0,))},
    "many axes": {"a": entry(shape=[1] * 40)},
    "count": {"a": entry(shape=(3,))},
    "huge count": {"a": entry(shape=(2**62, 2**62))},
    "reversed": {"a": entry(offsets=(8, 0))},
    "one offset": {"a": entry(offsets=(8,))},
    "beyond the end": {"a": entry(offsets=(8, 16))},
    "gap": {"a": entry(shape=(1,), offsets=(4, 8))},
    "overlap": {"a": entry(), "b": entry()},
    "left over": {"a": entry(shape=(1,), offsets=(0, 4))},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_header(tmp_path: Path, case: str) -> None:
    file = write(tmp_path / "bad.safetensors", BAD[case], bytes(8))
    with pytest.raises(BadWeights, match=r"bad\.safetensors: ") as caught:
        read_header(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("size", [0, 3, 8, 40])
def test_truncated(good: Path, size: int) -> None:
    good.write_bytes(good.read_bytes()[:size])
    with pytest.raises(BadWeights, match=r"model\.safetensors"):
        read_header(good)


def test_truncated_data(good: Path) -> None:
    good.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(BadWeights, match="truncated"):
        read_header(good)


def test_renamed_pickle(tmp_path: Path) -> None:
    for name, modern in (("zip", True), ("pickle", False)):
        file = tmp_path / f"{name}.safetensors"
        torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=modern)
        with pytest.raises(BadWeights, match="pickle or zip"):
            read_header(file)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="cannot be read"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(BadWeights, match="cannot be read"):
        read_header(tmp_path)


def test_claimed_length_is_not_allocated(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.safetensors", b"{}", length=2**62)
    tracemalloc.start()
    with pytest.raises(BadWeights):
        read_header(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "I8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries({"dtype": VALUES, "shape": VALUES, "data_offsets": VALUES})
HEADERS = st.dictionaries(st.text(max_size=6), ENTRIES | VALUES, max_size=4).map(
    lambda d: json.dumps(d).encode()
)


@settings(max_examples=150, deadline=None)
@given(
    raw=st.binary(max_size=200) | HEADERS,
    tail=st.binary(max_size=32),
    shift=st.integers(-4, 4) | st.integers(0, 2**63),
)
def test_fuzz(tmp_path_factory: pytest.TempPathFactory, raw: bytes, tail: bytes, shift: int) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    length = max(0, len(raw) + shift) if abs(shift) <= 4 else shift
    write(file, raw, tail, length)
    try:
        tensors = read_header(file)
    except BadWeights:
        return
    assert sum(t.end - t.start for t in tensors.values()) == file.stat().st_size - 8 - length


@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_fuzz_flipped_bytes(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    """What passes our check, safetensors itself opens too."""
    file = tmp_path_factory.getbasetemp() / "flip.safetensors"
    save_file({"a": torch.ones(2, 2), "b": torch.zeros(3)}, file)
    raw = bytearray(file.read_bytes())
    for at, value in flips:
        raw[at % len(raw)] = value
    file.write_bytes(raw)
    try:
        names = set(read_header(file))
    except BadWeights:
        return
    assert names == set(load_file(file))


ENTRY = b'{"dtype":"F16","shape":[0],"data_offsets":[0,0]}'
BULKY = {
    "empty tensors": b",".join(b'"%d":%s' % (i, ENTRY) for i in range(15000)),
    "dictionaries": b'"a":[' + b'{"a":0},' * 100_000 + b"1]",
    "lists": b'"a":[' + b"[]," * 250_000 + b"1]",
    "numbers": b'"a":[' + b"1.5," * 200_000 + b"1]",
    "nested": b'"a":' + b"[" * 400_000 + b"]" * 400_000,
}


@pytest.mark.parametrize("case", BULKY)
@pytest.mark.parametrize("padded", [False, True], ids=["alone", "before weights"])
def test_memory_stays_below_twice_the_file(tmp_path: Path, case: str, padded: bool) -> None:
    """Headers that grow most when they are read: the longest that is read alone, and the longest before weights."""
    raw, file = b"{" + BULKY[case] + b"}", tmp_path / "x.safetensors"
    assert SHORT // 2 < len(raw) < SHORT
    if padded:  # all the same, more often
        raw = b'{"0":[' + b",".join([raw] * 4) + b"]}"
    with file.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(SHARE * len(raw) if padded else stream.tell())
    tracemalloc.start()
    with contextlib.suppress(BadWeights):
        read_header(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (2 * file.stat().st_size if padded else 40 * SHORT)


def test_a_file_that_is_all_header(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", b'{"a":"' + b"x" * (2 * SHORT) + b'"}', b"", 2 * SHORT + 8)
    with pytest.raises(BadWeights, match="no weights need so many"):
        read_header(tmp_path / "x.safetensors")


def test_hash_sees_tensors_only(good: Path, tmp_path: Path) -> None:
    first = tensor_hash(good)
    tensors = load_file(good)
    save_file(tensors, tmp_path / "other.safetensors", metadata={"format": "pt", "note": "edited"})
    assert tensor_hash(tmp_path / "other.safetensors") == first
    tensors["b"][0, 0] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    assert tensor_hash(tmp_path / "other.safetensors") != first


def test_hash_of_shards_is_the_hash_of_the_whole(good: Path, tmp_path: Path) -> None:
    tensors = load_file(good)
    home = tmp_path / "sharded"
    home.mkdir()
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    names["none"] = names["a"]
    for shard in set(names.values()):
        save_file({n: tensors[n] for n in names if names[n] == shard}, home / shard)
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert tensor_hash(home) == tensor_hash(good)
    (home / names["b"]).unlink()
    with pytest.raises(BadWeights, match="shard is missing"):
        weight_files(home)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin"])
def test_shard_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadWeights, match="beside the index"):
        weight_files(tmp_path)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(BadWeights, match=r"diffusion_pytorch_model\.bin can run code.*convert"):
        weight_files(tmp_path)
    with pytest.raises(BadWeights, match=r"no \.safetensors"):
        weight_files(tmp_path / "nothing")


def test_variant(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert weight_files(tmp_path).variant == "fp16"
