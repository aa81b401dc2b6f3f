"""Tensors that lie in files: mapped into the address space, read as they are touched, let go of page by page.

A mapped page that nobody has touched takes no memory. A touched one counts as resident until it is let go of; the
system may still keep the file's contents in its cache, which it gives up before any program's memory.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import mmap
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
ALIGNED = 64
"""Bytes: what fast products look at when they choose their way, and with it the last bits of their results."""


MAPS = Path("/proc/self/maps")


class Place(NamedTuple):
    """Where a tensor lies in its file, in bytes."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Mapped:
    """A file, mapped for reading. Its tensors must not be written to: that would end the process."""

    def __init__(self, file: Path | BinaryIO) -> None:
        if isinstance(file, Path):
            with file.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def tensor(self, place: Place) -> Tensor:
        if place.nbytes == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        with warnings.catch_warnings():  # nobody writes to it
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(
                self._map, dtype=place.dtype, count=math.prod(place.shape), offset=place.start
            )
        return flat.view(place.shape)

    def fetch(self, start: int, end: int) -> None:
        """Read these bytes from the disk, where they are not in memory already."""
        if end <= start:
            return
        first = start - start % PAGE
        self._map.madvise(mmap.MADV_WILLNEED, first, end - first)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            there = torch.frombuffer(self._map, dtype=torch.uint8, count=end - first, offset=first)
        there[::PAGE].sum()  # touches every page, without holding up other threads

    def release(self, start: int, end: int) -> None:
        """These bytes no longer count as memory of this process; whoever touches them reads them anew."""
        if end > start:
            first = start - start % PAGE
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)


def let_go(tensors: Iterable[Tensor]) -> None:
    """The pages of mapped files that these tensors fill no longer count as memory of this process.

    For weights that nobody has written to: whoever reads them again reads the file. Tensors elsewhere stay as they are.
    """
    spans = [
        (-(-tensor.data_ptr() // PAGE) * PAGE, (tensor.data_ptr() + tensor.nbytes) // PAGE * PAGE)
        for tensor in tensors
        if tensor.device.type == "cpu"
    ]
    spans = [(first, last) for first, last in spans if first < last]
    files = _of_files() if spans else []
    for first, last in spans:
        i = bisect.bisect_right(files, (first, sys.maxsize)) - 1
        if i >= 0 and last <= files[i][1]:
            size = ctypes.c_size_t(last - first)
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_DONTNEED)


def give_back() -> None:
    """What the allocator keeps of work that is done goes back to the system."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))


def _of_files() -> list[tuple[int, int]]:
    """The addresses at which files are mapped, in order; none where the system does not say."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        span, _, _, _, number, *_ = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        if number != "0":
            found.append((start, end))
    return found


class Scratch:
    """Tensors written to a file that has no name and goes with the process."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as its tensors
        self._mapped: Mapped | None = None

    def write(self, tensors: Sequence[Tensor]) -> list[Place]:
        """Only before the first one is read."""
        return [self._write(tensor) for tensor in tensors]

    def _write(self, tensor: Tensor) -> Place:
        start = -(-self._file.tell() // ALIGNED) * ALIGNED + alignment(tensor)
        self._file.seek(start)
        flat = tensor.detach().cpu().contiguous().view(-1)
        if flat.numel():
            for part in flat.view(torch.uint8).split(1 << 26):
                self._file.write(memoryview(part.numpy()))
        return Place(start, tensor.dtype, tuple(tensor.shape))

    @property
    def mapped(self) -> Mapped:
        if self._mapped is None:
            self._file.flush()
            self._mapped = Mapped(self._file)
        return self._mapped


def alignment(tensor: Tensor) -> int:
    """How far beyond a multiple of ALIGNED a tensor on a processor begins."""
    return tensor.data_ptr() % ALIGNED if tensor.device.type == "cpu" else 0


def room_like(tensor: Tensor, dtype: torch.dtype, device: torch.device, beyond: int) -> Tensor:
    """Room for a tensor, on a processor so far beyond a multiple of ALIGNED."""
    if device.type != "cpu" or beyond % dtype.itemsize or not tensor.is_contiguous():
        return torch.empty_like(tensor, dtype=dtype, device=device)
    spare = ALIGNED // dtype.itemsize
    flat = torch.empty(tensor.numel() + spare, dtype=dtype)
    first = (beyond - alignment(flat)) % ALIGNED // dtype.itemsize
    return flat[first : first + tensor.numel()].view(tensor.shape)


def runs(places: Sequence[Place], gap: int = 1 << 16) -> Iterator[tuple[int, int]]:
    """The bytes of these places as few long runs (start, end): what lies closer together than `gap` is one."""
    start = end = -1
    for place in sorted(places, key=lambda place: place.start):
        if start >= 0 and place.start <= end + gap:
            end = max(end, place.start + place.nbytes)
            continue
        if start >= 0:
            yield start, end
        start, end = place.start, place.start + place.nbytes
    if start >= 0:
        yield start, end
