"""Readers of untrusted headers under a coverage-guided fuzzer: no crash, no hang, no flood of memory."""

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")
CHILD = Path(__file__).with_name("guided_child.py")
RUNS = 4000
HEADER = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def seeds() -> dict[str, bytes]:
    """One good file of each kind."""
    raw = json.dumps(HEADER).encode()
    key = text("general.architecture") + struct.pack("<I", 8) + text("flux")
    array = text("list") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<2I", 1, 2)
    tensor = text("a") + struct.pack("<IQQIQ", 2, 2, 3, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + key + array + tensor
    return {
        "safetensors": struct.pack("<Q", len(raw)) + raw + bytes(24),
        "gguf": head + bytes(-len(head) % 32) + bytes(32),
        "json": raw,
    }


def fuzz(target: str, corpus: Path, runs: int) -> subprocess.CompletedProcess[str]:
    corpus.mkdir(exist_ok=True)
    command = [sys.executable, str(CHILD), target, str(corpus), str(runs)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=corpus)


@pytest.mark.slow
@pytest.mark.parametrize("target", seeds())
def test_reader(target: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(seeds()[target])
    done = fuzz(target, corpus, RUNS)
    assert done.returncode == 0, done.stderr[-2000:]
    covered = [int(found) for found in re.findall(r"cov: (\d+)", done.stderr)]
    assert covered[-1] > covered[0], "the run was not guided"
    assert f"#{RUNS}" in done.stderr and "DONE" in done.stderr
