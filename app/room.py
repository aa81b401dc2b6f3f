"""How much memory there is and how much this process holds, on the processor's side or on a GPU."""

from __future__ import annotations

import bisect
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..pipelines.families._common import Checkpoint
from ..pipelines.protocols import Model

GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
MAPS = Path("/proc/self/smaps")
ENDINGS = (".safetensors", ".gguf", " (deleted)")
"""How the names of mapped files of weights end, those without a name included."""
KEPT = 0.05
"""The share of what is free that is left to others."""


class Room(NamedTuple):
    """Bytes."""

    held: int
    """By this process, all that counts as resident."""
    most: int
    """That it could hold in all, by what is free now."""


def room(device: str) -> Room:
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_allocated(device)
        spare = torch.cuda.memory_reserved(device) - held
        return Room(held, held + int((free + spare) * (1 - KEPT)))
    import psutil

    held = psutil.Process().memory_info().rss
    free = min(psutil.virtual_memory().available, *(_limits(held)))
    return Room(held, held + int(max(0, free) * (1 - KEPT)))


def _limits(held: int) -> list[int]:
    """What limits of the process and its group leave free."""
    found = [sys.maxsize]
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            import psutil

            found.append(max(0, soft - psutil.Process().memory_info().vms))
    try:
        path = GROUP.read_text(encoding="utf-8").strip().rpartition(":")[2].lstrip("/")
        text = (GROUPS / path / "memory.max").read_text(encoding="utf-8").strip()
        if text.isdecimal():
            used = int((GROUPS / path / "memory.current").read_text(encoding="utf-8"))
            found.append(max(0, int(text) - used))
    except (OSError, ValueError):
        return found
    return found


class Mapping(NamedTuple):
    """A file of weights in the address space, in bytes."""

    first: int
    last: int
    resident: int


def beside(model: Model, held: int) -> int:
    """Bytes that the process holds beside the weights of this model, out of `held`."""
    if not isinstance(model, Checkpoint):
        return held
    tensors = _tensors(model)
    if any(tensor.is_cuda for tensor in tensors):
        return max(0, held - sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor.is_cuda))
    mappings = mapped_weights()
    return max(0, held - _outside(tensors, mappings) - sum(mapping.resident for mapping in mappings))


def unmapped(model: Checkpoint) -> int:
    """Bytes of the weights that are in memory of their own, not mapped from a file."""
    return _outside(_tensors(model), mapped_weights())


def _tensors(model: Checkpoint) -> list[Tensor]:
    return [
        tensor
        for part in {id(part.net): part.net for part in model.parts.values()}.values()
        for tensor in (*part.parameters(), *part.buffers())
    ]


def _outside(tensors: Iterable[Tensor], mappings: Sequence[Mapping]) -> int:
    firsts = [mapping.first for mapping in mappings]
    own: dict[int, int] = {}
    for tensor in tensors:
        at = tensor.untyped_storage().data_ptr()
        i = bisect.bisect_right(firsts, at) - 1
        if i < 0 or at >= mappings[i].last:
            own[at] = tensor.untyped_storage().nbytes()
    return sum(own.values())


def mapped_weights() -> list[Mapping]:
    """By address; none where the system does not say."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found, at = [], None
    for line in lines:
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+\s*(.*)", line)
        if head is not None:
            at = (int(head[1], 16), int(head[2], 16)) if head[3].endswith(ENDINGS) else None
        elif at is not None and line.startswith("Rss:"):
            found.append(Mapping(*at, int(line.split()[1]) * 1024))
    return sorted(found)
