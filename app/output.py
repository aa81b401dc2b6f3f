"""Where results go, and how a file appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from .faults import refuse

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def image_paths(
    output: str | None, count: int, *, now: datetime | None = None, make: bool = True
) -> list[Path]:
    """One path per image, in a folder that exists and can be written to.

    No output: a new dated folder under `out/`. A trailing slash or an existing folder: numbered files in it,
    after those already there. A file name: as it is, with the index before the suffix when there are several.
    `make=False` only says what the paths would be.
    """
    if output is None:
        return _numbered(_dated_folder(Path("out"), now or datetime.now(), make), count)
    path = Path(output).expanduser()
    if output.endswith(("/", os.sep)) or path.is_dir():
        if make:
            ensure_folder(path)
        return _numbered(path, count)
    check_output(output, make=make)
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{i:04d}{path.suffix}") for i in range(count)]


def check_output(output: str | None, *, make: bool) -> None:
    """Refuse an unknown suffix or a folder that can't be written to before any work is done."""
    if output is None:
        return
    path = Path(output).expanduser()
    folder = path if output.endswith(("/", os.sep)) or path.is_dir() else path.parent
    if folder is not path and path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise refuse("output", output, f"has no known image suffix ({known}); end it in / for a folder")
    if make:
        ensure_folder(folder)


def image_folder(output: str | None) -> Path:
    """A folder for files with names of their own: the given one, or a new dated one under `out/`."""
    if output is None:
        return _dated_folder(Path("out"), datetime.now(), True)
    folder = Path(output).expanduser()
    if folder.is_file():
        raise refuse("output", output, "is a file; give a folder")
    ensure_folder(folder)
    return folder


def _dated_folder(root: Path, now: datetime, make: bool) -> Path:
    name = now.strftime("%Y-%m-%d_%H%M%S")
    for attempt in range(1, 10000):
        folder = root / (name if attempt == 1 else f"{name}-{attempt}")
        if folder.exists():
            continue
        if make:
            ensure_folder(root)
            try:
                folder.mkdir()
            except FileExistsError:  # another process was first
                continue
            ensure_folder(folder)
        return folder
    raise refuse("output", str(root), "holds 10000 runs of this second; give --output")


def _numbered(folder: Path, count: int) -> list[Path]:
    taken = [int(p.stem) for p in folder.glob("[0-9]*.png") if p.stem.isdecimal()] if folder.is_dir() else []
    first = max(taken, default=-1) + 1
    return [folder / f"{first + i:04d}.png" for i in range(count)]


def ensure_folder(folder: Path) -> None:
    """Make the folder, and make sure that files can be written in it, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise refuse(
            "output", str(folder), f"can't be written to ({reason}); choose another --output"
        ) from error


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write under a temporary name, flush to the disk, then take the final name: never half a file."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        error.filename = error.filename if error.filename not in (None, name) else str(path)
        raise
    finally:
        if os.path.exists(name):
            os.unlink(name)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
