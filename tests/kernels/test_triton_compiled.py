"""Triton's kernels become machine code for Ampere, Hopper and Blackwell; no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}
"""Bytes of shared memory that a block may have."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_kernels_compile(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled_kernels.py")), str(capability)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == (18 if capability > 80 else 13)
    assert all(made["bytes"] > 1000 for made in found.values())
    multiplying = {name: made for name, made in found.items() if "rows" not in name}
    assert all(made["tensor"] for made in multiplying.values()), found
    most = SHARED[capability]
    assert all(made["shared"] <= most for made in found.values()), found
