"""What users do to jobs: cancel, pause, resume, retry, move. A running job is asked, and stops at its next poll."""

from __future__ import annotations

import time

from ..faults import refuse
from .store import CANCELLED, COMPLETED, INTERRUPTED, OPEN, QUEUED, RUNNING, Job, Store


def cancel(store: Store, id: int) -> Job:
    """For good, though `retry` goes on from where it stopped."""
    with store.change(durable=True) as db:
        job = store.get(id)
        if job.state not in OPEN:
            raise refuse("job", id, f"is {job.state} already")
        if job.state == RUNNING:
            db.execute("UPDATE jobs SET wanted = 'cancel' WHERE id = ?", (id,))
            store.append(id, "cancel wanted")
        else:
            db.execute("UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ?", (time.time(), id))
            store.append(id, CANCELLED)
    return store.get(id)


def pause(store: Store, id: int) -> Job:
    """Not to be run until `resume`. A running job writes its checkpoint first."""
    with store.change(durable=True) as db:
        job = store.get(id)
        if job.state not in OPEN:
            raise refuse("job", id, f"is {job.state} already")
        if job.state == RUNNING:
            db.execute("UPDATE jobs SET wanted = 'pause' WHERE id = ? AND wanted = ''", (id,))
            store.append(id, "pause wanted")
        else:
            db.execute("UPDATE jobs SET held = 1 WHERE id = ?", (id,))
            store.append(id, "paused")
    return store.get(id)


def resume(store: Store, id: int) -> Job:
    """Back into the queue, at its old place."""
    with store.change(durable=True) as db:
        job = store.get(id)
        if job.state not in OPEN or not (job.held or job.wanted == "pause"):
            raise refuse("job", id, "is not paused")
        db.execute(
            "UPDATE jobs SET held = 0, wanted = CASE wanted WHEN 'pause' THEN '' ELSE wanted END WHERE id = ?",
            (id,),
        )
        store.append(id, "resumed")
    return store.get(id)


def retry(store: Store, id: int) -> Job:
    """A failed or cancelled job once more; what it has kept, and its checkpoint, are used."""
    with store.change(durable=True) as db:
        job = store.get(id)
        if job.state in OPEN:
            raise refuse("job", id, f"is {job.state}; only failed and cancelled jobs can be tried again")
        if job.state == COMPLETED:
            raise refuse("job", id, "is completed; submit its request again for another run")
        db.execute(
            "UPDATE jobs SET state = CASE WHEN advances > 0 THEN 'interrupted' ELSE 'queued' END, held = 0, "
            "wanted = '', error = '', finished = NULL, strikes = 0, fallen = -1 WHERE id = ?",
            (id,),
        )
        store.append(id, "retried")
    return store.get(id)


def prioritise(store: Store, id: int, priority: int) -> Job:
    """Higher runs earlier; within a priority the order stays."""
    with store.change(durable=True) as db:
        _waiting(store, id)
        db.execute("UPDATE jobs SET priority = ? WHERE id = ?", (priority, id))
        store.append(id, "moved", {"priority": priority})
    return store.get(id)


def move(store: Store, id: int, *, before: int | None = None) -> Job:
    """To just before another waiting job, whose priority it takes; without one, to the end of its own priority."""
    with store.change(durable=True) as db:
        job = _waiting(store, id)
        if before is None:
            last = db.execute("SELECT MAX(place) FROM jobs").fetchone()[0]
            priority, place = job.priority, last + 1
        else:
            if before == id:
                raise refuse("before", before, "is the job itself; name another")
            priority = _waiting(store, before).priority
            place = _gap(store, before)
        db.execute("UPDATE jobs SET priority = ?, place = ? WHERE id = ?", (priority, place, id))
        store.append(id, "moved", {"priority": priority, "before": before})
    return store.get(id)


def first(store: Store) -> int | None:
    """The waiting job that is taken next."""
    row = store.db.execute(
        "SELECT id FROM jobs WHERE state IN ('queued', 'interrupted') AND held = 0 "
        "ORDER BY priority DESC, place LIMIT 1"
    ).fetchone()
    return None if row is None else int(row[0])


def _waiting(store: Store, id: int) -> Job:
    job = store.get(id)
    if job.state not in (QUEUED, INTERRUPTED):
        raise refuse("job", id, f"is {job.state}; only waiting jobs can be moved")
    return job


def _gap(store: Store, before: int) -> float:
    """A place between a job and the one above it; all are numbered anew once halving leaves no room."""
    for _ in range(2):
        place = store.get(before).place
        above = store.db.execute("SELECT MAX(place) FROM jobs WHERE place < ?", (place,)).fetchone()[0]
        above = place - 1 if above is None else above
        middle = float(above + place) / 2
        if above < middle < place:
            return middle
        store.db.execute(
            "UPDATE jobs SET place = ranked.rank FROM (SELECT id AS ranked_id, ROW_NUMBER() OVER "
            "(ORDER BY place) AS rank FROM jobs) AS ranked WHERE jobs.id = ranked.ranked_id"
        )
    raise AssertionError("whole numbers have room between them")
