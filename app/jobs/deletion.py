"""Deleting a job: it, its results and whatever was kept for it. Files that other jobs share stay."""

from __future__ import annotations

import shutil

from ..faults import refuse
from .artifacts import artifact_path, thumbnail_path
from .store import OPEN, Store


def delete(store: Store, id: int) -> int:
    """For good, a finished job alone. Returns how many files are gone.

    Refused while it runs or waits, and while an open job starts from one of its results. An event `deleted` is left.
    """
    with store.change(durable=True) as db:
        job = store.get(id)
        if job.state in OPEN:
            raise refuse("job", id, f"is {job.state}; cancel it first")
        held = store.artifacts(id)
        for kept in held:
            _not_needed(store, id, kept.hash)
        for table in ("artifacts", "events", "requests"):
            db.execute(f"DELETE FROM {table} WHERE job = ?", (id,))
        db.execute("DELETE FROM jobs WHERE id = ?", (id,))
        store.append(id, "deleted")
    gone = 0
    for kept in held:
        with store.change() as db:  # nobody shelves the same bytes for another job meanwhile
            if not db.execute("SELECT 1 FROM artifacts WHERE hash = ?", (kept.hash,)).fetchone():
                artifact_path(store.home, kept.hash, kept.suffix).unlink(missing_ok=True)
                thumbnail_path(store.home, kept.hash).unlink(missing_ok=True)
                gone += 1
    shutil.rmtree(store.job_folder(id), ignore_errors=True)
    return gone


def _not_needed(store: Store, id: int, hash: str) -> None:
    marks = ", ".join("?" * len(OPEN))
    row = store.db.execute(
        f"SELECT job FROM requests JOIN jobs ON jobs.id = requests.job WHERE state IN ({marks}) AND "
        "instr(request, ?) ORDER BY job LIMIT 1",
        (*OPEN, hash),
    ).fetchone()
    if row is not None:
        raise refuse("job", id, f"can't be deleted: job {row[0]} starts from its result; cancel that first")
