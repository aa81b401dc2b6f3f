"""GGUF headers are read with distrust; transformers in GGUF files open where the gguf package is installed."""

from __future__ import annotations

import importlib.util
import struct
import time
import tracemalloc
from pathlib import Path

import original_names as original
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sfumato.pipelines.doors.gguf_header import BLOCKS, HEADER_LIMIT, read_gguf
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.loras import Loras
from sfumato.pipelines.protocols import Model
from sfumato.pipelines.text_to_image import TextToImage
from sfumato.pipelines.weights import tensor_hash

TYPES = {name: (number, elements, size) for number, (name, elements, size) in BLOCKS.items()}
GGUF = importlib.util.find_spec("gguf") is not None


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def write(
    file: Path,
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]],
    metadata: bytes = b"",
    keys: int = 0,
    version: int = 3,
) -> Path:
    """Tensors as (type, shape, bytes)."""
    infos, data = b"", b""
    for name, (dtype, shape, raw) in tensors.items():
        data += bytes(-len(data) % 32)
        infos += text(name) + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", axis) for axis in reversed(shape))
        infos += struct.pack("<IQ", TYPES[dtype][0], len(data))
        data += raw
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), keys) + metadata + infos
    file.write_bytes(head + bytes(-len(head) % 32) + data)
    return file


def packed(tensor: torch.Tensor) -> bytes:
    """Q8_0: blocks of 32, a half-precision scale and 32 bytes each."""
    blocks = tensor.reshape(-1, 32).float()
    scales = (blocks.abs().amax(1) / 127).half()
    steps = (blocks / scales.float().clamp(min=1e-8)[:, None]).round().clamp(-127, 127).to(torch.int8)
    rows = torch.cat([scales[:, None].view(torch.uint8), steps.view(torch.uint8)], dim=1)
    return rows.numpy().tobytes()


def plain(tensor: torch.Tensor) -> bytes:
    return tensor.float().contiguous().numpy().tobytes()


METADATA = (
    text("general.architecture")
    + struct.pack("<I", 8)
    + text("flux")
    + text("list")
    + struct.pack("<IIQ", 9, 4, 3)
    + struct.pack("<3I", 1, 2, 3)
    + text("words")
    + struct.pack("<IIQ", 9, 8, 1)
    + text("a")
)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    tensors = {
        "a": ("F32", (2, 3), plain(torch.arange(6.0))),
        "b": ("Q8_0", (2, 64), packed(torch.randn(2, 64))),
    }
    return write(tmp_path / "good.gguf", tensors, METADATA, 3)


def test_header(good: Path) -> None:
    found = read_gguf(good)
    assert found.metadata == {"general.architecture": "flux", "list": [1, 2, 3], "words": ["a"]}
    assert {n: (t.dtype, t.shape) for n, t in found.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("Q8_0", (2, 64)),
    }
    a = found.tensors["a"]
    assert good.read_bytes()[a.start : a.end] == plain(torch.arange(6.0))
    assert found.tensors["b"].end == good.stat().st_size
    assert len(tensor_hash(good)) == 64


ONE = {"a": ("F32", (2,), bytes(8))}
HEAD = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
BAD = {
    "empty": b"",
    "other": b"GGML" + bytes(40),
    "version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "cut": HEAD,
    "many tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    "many keys": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "long name": HEAD + struct.pack("<Q", 2**62),
    "no text": HEAD + struct.pack("<Q", 2) + b"\xff\xfe",
    "axes": HEAD + text("a") + struct.pack("<I", 9) + bytes(200),
    "type": HEAD + text("a") + struct.pack("<IQIQ", 1, 2, 99, 0),
    "odd row": HEAD + text("a") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(64),
    "outside": HEAD + text("a") + struct.pack("<IQIQ", 1, 2, 0, 2**40) + bytes(64),
    "huge shape": HEAD + text("a") + struct.pack("<IQQQQIQ", 4, *[2**63] * 4, 0, 0) + bytes(64),
    "unaligned": HEAD + text("a") + struct.pack("<IQIQ", 1, 2, 0, 7) + bytes(64),
    "value type": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<I", 77),
    "array in array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 5),
    "long array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 0, 2**62),
    "many strings": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**62),
    "alignment": b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + text("general.alignment")
    + struct.pack("<II", 4, 0),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_header(tmp_path: Path, case: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(BAD[case])
    tracemalloc.start()
    with pytest.raises(BadWeights, match=r"bad\.gguf: ") as caught:
        read_gguf(tmp_path / "bad.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and peak < 1_000_000


def test_twice_and_overlap(tmp_path: Path) -> None:
    entry = text("a") + struct.pack("<IQIQ", 1, 2, 0, 0)
    two = b"GGUF" + struct.pack("<IQQ", 3, 2, 0)
    (tmp_path / "x.gguf").write_bytes(two + entry + entry + bytes(96))
    with pytest.raises(BadWeights, match="stands twice"):
        read_gguf(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(two + entry + entry.replace(b"a", b"b", 1) + bytes(96))
    with pytest.raises(BadWeights, match="overlaps"):
        read_gguf(tmp_path / "x.gguf")
    with pytest.raises(BadWeights, match="cannot be read"):
        read_gguf(tmp_path)


@pytest.mark.slow
def test_the_longest_header_is_read_in_seconds(tmp_path: Path) -> None:
    strings = bytes(8) * (1 << 20)
    array = text("k") + struct.pack("<IIQ", 9, 8, 1 << 20) + strings
    count = HEADER_LIMIT // len(array)
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, count + 5) + array * (count + 1))
    start = time.monotonic()
    with pytest.raises(BadWeights):
        read_gguf(tmp_path / "x.gguf")
    assert time.monotonic() - start < 20


@settings(max_examples=100, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=5))
def test_fuzz_flipped_bytes(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    file = tmp_path_factory.getbasetemp() / "flip.gguf"
    write(file, {"a": ("F32", (2, 3), bytes(24)), "b": ("Q8_0", (2, 64), bytes(136))}, METADATA, 3)
    raw = bytearray(file.read_bytes())
    for at, value in flips:
        raw[at % len(raw)] = value
    file.write_bytes(raw)
    check(file)


@settings(max_examples=80, deadline=None)
@given(
    raw=st.binary(max_size=200), tensors=st.integers(0, 3) | st.integers(0, 2**64 - 1), keys=st.integers(0, 3)
)
def test_fuzz_random_bytes(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, tensors: int, keys: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "random.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + raw)
    check(file)


def check(file: Path) -> None:
    try:
        found = read_gguf(file)
    except BadWeights:
        return
    size = file.stat().st_size
    assert all(0 <= t.start <= t.end <= size for t in found.tensors.values())


def as_gguf(state: dict[str, torch.Tensor], file: Path, prefix: str = "") -> Path:
    """Matrices of the blocks packed, all else plain, as converters do it."""
    tensors = {}
    for name, tensor in state.items():
        matrix = tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and "_blocks." in name
        raw = packed(tensor) if matrix else plain(tensor)
        tensors[prefix + name] = ("Q8_0" if matrix else "F32", tuple(tensor.shape), raw)
    return write(file, tensors, text("general.architecture") + struct.pack("<I", 8) + text("flux"), 1)


@pytest.mark.skipif(not GGUF, reason="the gguf package is not installed")
@pytest.mark.parametrize("prefix", ["", original.LDM])
def test_a_transformer_opens(tmp_path: Path, prefix: str) -> None:
    folder = tiny_models.flux(tmp_path / "flux", guidance_embeds=True)
    state = original.flux(original.weights(folder, "transformer"))
    file = as_gguf(state, tmp_path / "tiny.gguf", prefix)
    ours, theirs = (
        TextToImage(model, guidance=Cfg(1.0))("a red cube", width=64, height=64, steps=2, seed=7).latents
        for model in (open_model(file, parts=folder), open_model(folder))
    )
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.02
    fewer = {n: t for n, t in state.items() if n != "img_in.bias"}
    with pytest.raises(BadWeights, match=r"lacks x_embedder\.bias"):
        open_model(as_gguf(fewer, tmp_path / "fewer.gguf"), parts=folder)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.flux(tmp_path / "flux")
    file = as_gguf(original.flux(original.weights(folder, "transformer")), tmp_path / "tiny.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"need the gguf package; install it: pip install 'sfumato\[gguf\]'"):
        open_model(file, parts=folder)


@pytest.mark.skipif(not GGUF, reason="the gguf package is not installed")
def test_loras_act_on_packed_weights(tmp_path: Path) -> None:
    folder = tiny_models.flux(tmp_path / "flux", guidance_embeds=True)
    file = as_gguf(original.flux(original.weights(folder, "transformer")), tmp_path / "tiny.gguf")
    torch.manual_seed(2)
    factors = {}
    for name in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp"):
        out, into = original.weights(folder, "transformer")[f"{name}.weight"].shape
        factors[f"transformer.{name}.lora_A.weight"] = torch.randn(4, into)
        factors[f"transformer.{name}.lora_B.weight"] = torch.randn(out, 4)
    save_file(factors, tmp_path / "lora.safetensors")
    plain, quantised = open_model(folder), open_model(file, parts=folder)
    before = latents_of(quantised)
    loras = Loras(quantised), Loras(plain)
    for lora in loras:
        lora.add("a", tmp_path / "lora.safetensors")
        lora.weigh({"a": 0.7})
    ours, theirs = latents_of(quantised), latents_of(plain)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.03
    assert float((ours - before).norm() / before.norm()) > 0.1
    with pytest.raises(BadInput, match="packed; weigh them"):
        loras[0].merge({"a": 0.7})
    loras[0].remove("a")
    assert torch.equal(latents_of(quantised), before)


def latents_of(model: Model) -> torch.Tensor:
    make = TextToImage(model, guidance=Cfg(1.0))
    return make("a red cube", width=64, height=64, steps=2, seed=7).latents
