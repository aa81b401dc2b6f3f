"""Importing does no work: no files, no folders, no network, no processes, no device, no change of global settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from house.tree import CODE, imports, module_name, python

PROBE = """
import importlib, json, os, sys

others, ours = json.load(sys.stdin)
for name in others:
    importlib.import_module(name)
import torch

written = os.O_WRONLY | os.O_RDWR | os.O_CREAT
seen = []

def audit(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & written:
        seen.append(f"open {args[0]}")
    elif event in ("os.mkdir", "os.remove", "os.rename", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        seen.append(f"{event} {args[0]}")

def settings():
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "random": torch.random.get_rng_state().sum().item(),
        "environment": dict(os.environ),
    }

before = settings()
sys.addaudithook(audit)
for name in ours:
    importlib.import_module(name)
after = settings()
changed = [key for key in before if before[key] != after[key]]
print(json.dumps({"seen": seen, "changed": changed, "cuda": torch.cuda.is_initialized()}))
"""


@pytest.mark.slow
def test_importing_every_module_does_no_work(tmp_path: Path) -> None:
    """What other packages do when they are first imported is theirs; they come before the watch begins."""
    paths = [p for p in python(*CODE) if p.name != "__main__.py"]
    found = {
        i.module for p in paths for i in imports(p) if not i.lazy and i.module.partition(".")[0] != "sfumato"
    }
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROBE],
        input=json.dumps([sorted(found), [module_name(p) for p in paths]]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"seen": [], "changed": [], "cuda": False}
    assert not list(tmp_path.iterdir())


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    """What `sfumato --help` loads; torch alone takes seconds."""
    heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "fastapi", "uvicorn"}
    code = f"import sys, sfumato.app.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
