"""The most memory that a job held at once."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin(device: str) -> None:
    """Forget earlier peaks. Where the system can't, the peak is that of the process so far."""
    with suppress(OSError):
        CLEAR.write_text("5")
    if device.startswith("cuda") and "torch" in sys.modules:
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> dict[str, int]:
    """Bytes of the process, and of the GPU if there is one."""
    found = {"ram": _resident()}
    if device.startswith("cuda") and "torch" in sys.modules:
        import torch

        found["gpu"] = int(torch.cuda.max_memory_allocated())
    return found


def _resident() -> int:
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
