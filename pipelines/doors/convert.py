"""Pickled weights made into safetensors by a child process that can do nothing else (unpickle.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadInput, BadWeights
from ..weights import UNSAFE, read_header

SCRIPT = Path(__file__).with_name("unpickle.py")
READ = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SLOWEST = 20_000_000
"""Bytes per second that are waited for."""
ROOM = 512_000_000
"""Bytes that reading takes beside the tensors."""


class Converted(NamedTuple):
    path: Path
    tensors: int
    left_out: int
    """Values that were no tensors."""


def convert(file: Path, output: Path, *, timeout: float | None = None) -> Converted:
    """Write the tensors of a pickled file as safetensors. The result appears whole or not at all.

    `timeout` in seconds; a minute, and more for large files, if not given.
    """
    _check(file, output)
    size = file.stat().st_size
    handle, name = tempfile.mkstemp(prefix=f".{output.stem}.", suffix=".part", dir=output.parent)
    os.close(handle)
    try:
        said = _run(file, Path(name), 3 * size + ROOM, 60 + size / SLOWEST if timeout is None else timeout)
        if "refused" in said:
            raise BadWeights(f"{file}: {said['refused']}; nothing was written")
        read_header(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, output)
    finally:
        Path(name).unlink(missing_ok=True)
    return Converted(output, int(said["tensors"]), int(said["left_out"]))


def _check(file: Path, output: Path) -> None:
    if not file.is_file():
        raise BadInput("file", f"{file} is no file; give a .ckpt, .pt, .pth or .bin file")
    if file.suffix.lower() not in READ and file.suffix.lower() in UNSAFE:
        raise BadInput(
            "file", f"{file}: {file.suffix} is not a format of torch; only {', '.join(READ)} are converted"
        )
    if output.suffix != ".safetensors":
        raise BadInput("output", f"{output} must end in .safetensors")
    if output.exists():
        raise BadInput("output", f"{output} exists; remove it or choose another --output")
    if not output.parent.is_dir():
        raise BadInput("output", f"{output.parent} is no folder; make it or choose another --output")


def _run(file: Path, target: Path, room: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-P", str(SCRIPT), str(file.resolve()), str(target.resolve()), str(room)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            cwd=target.parent,
        )
    except subprocess.TimeoutExpired as error:
        raise BadWeights(
            f"{file}: reading took longer than {seconds:g} seconds and was stopped; give a longer --timeout"
        ) from error
    try:
        said = json.loads(done.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2])
    except ValueError:
        said = None
    if done.returncode or not isinstance(said, dict):
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [
            f"exit code {done.returncode}"
        ]
        raise BadWeights(f"{file}: reading failed ({lines[-1][:160]}); nothing was written")
    return said
