"""Which backend is fastest here: measured once per machine and class of shapes, and kept in the user's cache folder.

A class is a device, a precision, the features (those of values too, where they are others), whether there is a bias,
and how many queries and keys there are to the next power of two. The batch is not part of it, so a picture takes the
same way in any batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .call import Backend, Call

LOG = logging.getLogger(__name__)
REPEATS = 3
_lock = threading.Lock()
_known: dict[Path, dict[str, dict[str, float]]] = {}
_told: set[str] = set()


def once(text: str, level: int = logging.INFO) -> None:
    """Say it the first time."""
    if text not in _told:
        _told.add(text)
        LOG.log(level, text)


def folder() -> Path:
    return Path.home() / ".cache" / "sfumato" / "attention"


def class_of(call: Call) -> str:
    """The class of shapes in words."""
    q, k = call.q, call.k
    tokens = "x".join(str(1 << max(n - 1, 0).bit_length()) for n in (q.shape[2], k.shape[2]))
    dtype = str(q.dtype).removeprefix("torch.")
    width = "" if call.v.shape[3] == q.shape[3] else f" v{call.v.shape[3]}"
    return f"{q.device.type} {dtype} {tokens} d{q.shape[3]}{width}{'' if call.bias is None else ' bias'}"


def fastest(call: Call, candidates: Sequence[Backend]) -> Backend:
    """Of those that can serve the call. One alone is not measured."""
    if len(candidates) == 1:
        return candidates[0]
    file, place, by_name = _file(call), class_of(call), {b.name: b for b in candidates}
    with _lock:
        if file not in _known:
            _known[file] = _read(file)
        seconds = _known[file].setdefault(place, {})
        new = [b for b in candidates if b.name not in seconds]
        if new:
            seconds |= {b.name: _measured(b, call) for b in new}
            _write(file, _known[file])
        best = min(by_name, key=lambda name: seconds[name])
    told = ", ".join(f"{name} {1e3 * seconds[name]:.3g} ms" for name in by_name)
    once(f"attention takes {best} for {place} (measured: {told})")
    return by_name[best]


def _measured(backend: Backend, call: Call) -> float:
    """Seconds, the least of a few; infinity where it fails in spite of what it says."""
    best = float("inf")
    try:
        with torch.no_grad():
            backend.run(call)
            for _ in range(REPEATS):
                _wait(call)
                began = time.perf_counter()
                backend.run(call)
                _wait(call)
                best = min(best, time.perf_counter() - began)
    except (RuntimeError, ImportError, ValueError) as error:
        once(f"attention leaves {backend.name} out: {str(error)[:200]}", logging.WARNING)
    return best


def _wait(call: Call) -> None:
    if call.q.device.type == "cuda":
        torch.cuda.synchronize(call.q.device)


def _file(call: Call) -> Path:
    """One file per device, its driver's torch, and count of threads."""
    device = call.q.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    told = [chip, platform.machine(), torch.__version__, str(torch.get_num_threads()), platform.node()]
    return folder() / f"{hashlib.sha256(chr(0).join(told).encode()).hexdigest()[:24]}.json"


def _read(file: Path) -> dict[str, dict[str, float]]:
    """Empty for a file that is none, or holds anything else: it is measured anew."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        place: {name: float(s) for name, s in seconds.items() if isinstance(s, float | int)}
        for place, seconds in found.items()
        if isinstance(seconds, dict)
    }


def _write(file: Path, found: dict[str, dict[str, float]]) -> None:
    """What another process measured meanwhile is kept."""
    merged = _read(file)
    for place, seconds in found.items():
        merged[place] = merged.get(place, {}) | {n: s for n, s in seconds.items() if s != float("inf")}
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(merged, out, indent=1, sort_keys=True)
        os.replace(name, file)
    except OSError as error:
        once(f"what attention measured could not be kept ({error})", logging.WARNING)
