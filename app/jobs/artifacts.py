"""Results as files under the hash of their bytes, and the room they take."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .store import COMPLETED, DONE, OPEN, RUNNING, Store

CHECKPOINT, PREVIEW, DEFECT = "checkpoint", "preview.png", "defect.txt"
LASTING = (CHECKPOINT, PREVIEW, DEFECT)
"""Files in the folder of an open job; others are being written."""

STALE_DAYS = 7
"""Checkpoints of failed and cancelled jobs are kept so long for `retry`."""


class Freed(NamedTuple):
    files: int
    bytes: int
    dropped: tuple[int, ...] = ()
    """Jobs whose results are gone."""


def artifact_path(home: Path, hash: str, suffix: str) -> Path:
    return home / "artifacts" / hash[:2] / f"{hash}{suffix}"


def thumbnail_path(home: Path, hash: str) -> Path:
    """Where the small picture of a result is, once somebody has asked for it."""
    return home / "thumbnails" / hash[:2] / f"{hash}.webp"


def hash_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shelve(home: Path, part: Path, hash: str, suffix: str) -> None:
    """A finished file under its hash. Only within the transaction that records it, so that `gc` can't come between."""
    path = artifact_path(home, hash, suffix)
    if path.exists():
        part.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, path)


def usage(store: Store) -> int:
    """Bytes of all results; the same bytes in several jobs count once."""
    query = "SELECT COALESCE(SUM(bytes), 0) FROM (SELECT MAX(bytes) AS bytes FROM artifacts GROUP BY hash, suffix)"
    return int(store.db.execute(query).fetchone()[0])


def gc(store: Store, *, to: int | None = None, now: float | None = None) -> Freed:
    """Delete what nothing refers to; with `to`, results of the oldest finished jobs too, until so much is left."""
    dropped = [] if to is None else list(_drop_oldest(store, to))
    files = size = 0
    for path in (store.home / "jobs").glob("*"):
        with store.change(), suppress(FileNotFoundError):  # the job's runner may be deleting it too
            for file in _useless(store, path, time.time() if now is None else now):
                files, size = files + 1, size + file.stat().st_size
                file.unlink()
    for path in (store.home / "thumbnails").glob("*/*"):  # made anew when somebody asks
        if not store.db.execute("SELECT 1 FROM artifacts WHERE hash = ?", (path.name[:64],)).fetchone():
            path.unlink(missing_ok=True)
    for path in sorted((store.home / "artifacts").glob("*/*")):
        length = path.stat().st_size if path.exists() else 0
        with store.change() as db:  # a runner shelves a file and records it in one transaction
            if db.execute(
                "SELECT 1 FROM artifacts WHERE hash = ? AND suffix = ?", (path.name[:64], path.name[64:])
            ).fetchone():
                continue
            path.unlink(missing_ok=True)
        files, size = files + 1, size + length
    return Freed(files, size, tuple(dropped))


def _drop_oldest(store: Store, to: int) -> Iterator[int]:
    marks = ", ".join("?" * len(DONE))
    query = (
        "SELECT id FROM jobs WHERE "
        f"state IN ({marks}) AND id IN (SELECT job FROM artifacts) ORDER BY finished, id"
    )
    for (id,) in store.db.execute(query, DONE).fetchall():
        if usage(store) <= to:
            return
        with store.change(durable=True) as db:
            gone = db.execute("DELETE FROM artifacts WHERE job = ?", (id,)).rowcount
            store.append(id, "dropped", {"artifacts": gone})
        yield id


def _useless(store: Store, folder: Path, now: float) -> list[Path]:
    """Files of a job's folder that no one will ask for: all at the job's end, else what a kill left half-written.

    Within a transaction, so that nobody claims or retries the job meanwhile. A folder without files is deleted.
    """
    held = [file for file in folder.rglob("*") if file.is_file()]
    row = store.db.execute("SELECT state, finished FROM jobs WHERE id = ?", (folder.name,)).fetchone()
    if row is not None and row[0] == RUNNING:
        return []
    if not held:
        folder.rmdir()
    stale = row is not None and row[0] not in OPEN and now - (row[1] or 0) > STALE_DAYS * 86400
    if row is None or row[0] == COMPLETED or stale:
        return held
    return [file for file in held if file.name not in LASTING]
