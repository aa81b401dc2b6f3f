"""One runner per device: a lock that dies with its process, however that dies."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..faults import Failure


@contextmanager
def device_lock(home: Path, device: str, *, patience: float = 0.0) -> Iterator[bool]:
    """Whether this process holds the device now. `patience` is how long to wait for it, in seconds."""
    file = home / "runners" / f"{re.sub(r'[^a-z0-9]+', '-', device.lower())}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + patience
        while not (held := _taken(handle)) and time.monotonic() < until:
            time.sleep(0.02)
        yield held
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    from fcntl import LOCK_EX, LOCK_NB, flock  # not on Windows, where jobs can be queued and read but not run

    try:
        flock(handle, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def busy(device: str) -> Failure:
    return Failure(f"another runner works on {device}; one is enough, `sfumato jobs list` shows what it does")
