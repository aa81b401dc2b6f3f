"""Where jobs live, and the settings of their runners. The environment is read here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..faults import refuse

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)


@dataclass(frozen=True)
class Policy:
    """How a runner behaves; nothing here changes a result."""

    checkpoint_seconds: float = 10.0
    """Sampling time between checkpoints, 0 is after each step."""
    preview_seconds: float = 1.0
    """Least time between previews."""
    preview_share: float = 0.05
    """Most of the time that previews may take."""
    progress_seconds: float = 0.25
    """Least time between two entries of progress."""
    strikes: int = 3
    """Deaths of the process without progress after which a job has failed, 1 and up."""
    cap: int = 50 * 10**9
    """Bytes of results beyond which no job is begun."""


def data_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """`SFUMATO_HOME`, or the platform's folder for data of programs."""
    named = environment.get("SFUMATO_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("sfumato", appauthor=False))


def policy(environment: Mapping[str, str] = os.environ) -> Policy:
    """The defaults, with `SFUMATO_DISK_CAP` and `SFUMATO_CHECKPOINT_SECONDS` where these are set."""
    own = Policy()
    cap, seconds = environment.get("SFUMATO_DISK_CAP"), environment.get("SFUMATO_CHECKPOINT_SECONDS")
    if seconds and not re.fullmatch(r"\d+(\.\d+)?", seconds):
        raise refuse("SFUMATO_CHECKPOINT_SECONDS", seconds, "must be a number of seconds, as in 10")
    return Policy(
        checkpoint_seconds=float(seconds) if seconds else own.checkpoint_seconds,
        cap=size_of(cap, "SFUMATO_DISK_CAP") if cap else own.cap,
    )


def size_of(text: str, field: str) -> int:
    """`20GB`, `500 MB` or a number of bytes."""
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise refuse(field, text, "is no size; write it as in 20GB")
    return int(float(found[1]) * UNITS[found[2].lower()])


def told_size(count: int) -> str:
    """Bytes for people."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
