"""Pickles become safetensors in a child process, or one sentence; nothing in them runs."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sfumato.pipelines.doors import convert as converting
from sfumato.pipelines.doors import unpickle
from sfumato.pipelines.doors.convert import convert
from sfumato.pipelines.errors import BadInput, BadWeights


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def examined(file: Path) -> dict[str, torch.Tensor]:
    """What the child would save; torch's own unpickler is safe here too."""
    found = unpickle.examine(str(file), 10**9)
    assert not isinstance(found, str), found
    return found[0]


def said(file: Path) -> str:
    found = unpickle.examine(str(file), 10**9)
    assert isinstance(found, str)
    return found


def test_tensors_are_kept(tmp_path: Path) -> None:
    tied = torch.ones(3, 2)
    state = {"a.weight": tied, "a.tied": tied, "b": torch.arange(6.0).reshape(2, 3).T, "n": 3}
    wrapped = {"state_dict": state, "epoch": 5, "callbacks": {"x": [1, 2]}}
    torch.save(wrapped, tmp_path / "old.ckpt")
    made = convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors")
    assert (made.tensors, made.left_out) == (3, 1)
    found = load_file(tmp_path / "new.safetensors")
    assert torch.equal(found["b"], state["b"]) and torch.equal(found["a.tied"], tied)
    assert {p.name for p in tmp_path.iterdir()} == {"old.ckpt", "new.safetensors"}


def test_malicious_pickles_do_nothing(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    torch.save({"a": torch.ones(2), "evil": Evil(flag)}, tmp_path / "zip.ckpt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(flag)))
    with pytest.raises(BadWeights, match=r"it holds more than tensors.*nothing was written") as caught:
        convert(tmp_path / "zip.ckpt", tmp_path / "out.safetensors")
    for message in (str(caught.value), said(tmp_path / "plain.pt")):
        assert "\n" not in message and len(message) < 500 and "weights_only=False" not in message
    assert not flag.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"zip.ckpt", "plain.pt"}


@pytest.mark.parametrize("data", [b"", b"\x80", b"PK\x03\x04", b"hello", b"\x80\x02}q\x00(K\x01"], ids=repr)
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    assert said(tmp_path / "x.bin").startswith("it ")


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bytes that stand for many: a storage that repeats, a tensor that claims more than is there."""
    torch.save({"a": torch.zeros(1).expand(200_000_000)}, tmp_path / "big.pt")
    assert (tmp_path / "big.pt").stat().st_size < 10_000
    monkeypatch.setattr(converting, "ROOM", 100_000_000)
    with pytest.raises(BadWeights, match="wants more than"):
        convert(tmp_path / "big.pt", tmp_path / "big.safetensors")
    assert not (tmp_path / "big.safetensors").exists()


def test_time_is_bounded(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(BadWeights, match=r"longer than 0\.01 seconds"):
        convert(tmp_path / "a.pt", tmp_path / "a.safetensors", timeout=0.01)
    assert {p.name for p in tmp_path.iterdir()} == {"a.pt"}


def test_bad_requests(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x")
    for file, output, message in (
        ("none.pt", "a.safetensors", "is no file"),
        ("a.pt", "a.bin", r"must end in \.safetensors"),
        ("a.pt", "no/a.safetensors", "is no folder"),
    ):
        with pytest.raises(BadInput, match=message):
            convert(tmp_path / file, tmp_path / output)
    (tmp_path / "there.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="exists"):
        convert(tmp_path / "a.pt", tmp_path / "there.safetensors")


GUARD = """
import socket, subprocess, sys
sys.path.insert(0, sys.argv[1])
import unpickle
if sys.argv[3] == "alone":
    unpickle.leave_the_network()
    print(sorted(name for _, name in socket.if_nameindex()))
    sys.exit()
unpickle.forbid(sys.argv[2])
open(sys.argv[2], "wb").close()
for attempt in (
    lambda: socket.create_connection(("127.0.0.1", int(sys.argv[4])), 1),
    lambda: subprocess.Popen(["true"]),
    lambda: __import__("os").system("true"),
    lambda: __import__("os").remove(sys.argv[2]),
    lambda: open(sys.argv[2] + "x", "w"),
    lambda: __import__("os").fork(),
):
    try:
        attempt()
        print("done")
    except PermissionError:
        print("refused")
"""


def test_guards_of_the_child(tmp_path: Path) -> None:
    import subprocess
    import sys

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        command = [
            sys.executable,
            "-I",
            "-c",
            GUARD,
            str(Path(unpickle.__file__).parent),
            str(tmp_path / "t"),
        ]
        port = str(server.getsockname()[1])
        done = subprocess.run([*command, "guarded", port], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 6
    alone = subprocess.run([*command, "alone", port], capture_output=True, text=True, check=True)
    assert alone.stdout.strip() in ("['lo']", str(sorted(n for _, n in socket.if_nameindex())))


def test_leftovers_of_trainers_are_inert(tmp_path: Path) -> None:
    """Checkpoints of the first Stable Diffusion hold an object of the trainer, which must not stop them."""
    import sys
    import types

    package, module = types.ModuleType("pytorch_lightning"), "pytorch_lightning.callbacks.model_checkpoint"
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", module)
    kind = type("ModelCheckpoint", (), {"__module__": module})
    package.ModelCheckpoint = kind  # type: ignore[attr-defined]
    sys.modules.update({name: package for name in names})
    try:
        torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": {"x": kind()}}, tmp_path / "v1.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    assert list(examined(tmp_path / "v1.ckpt")) == ["a"]


def test_textual_inversion(tmp_path: Path) -> None:
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "cat"},
        tmp_path / "cat.pt",
    )
    assert examined(tmp_path / "cat.pt")["emb_params"].shape == (2, 768)
