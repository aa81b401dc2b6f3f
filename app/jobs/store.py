"""The store: what jobs there are, what happened to them, what came of them. Reading never waits for a runner.

Changes that users make are in `control.py`, those of a runner in `ledger.py`; each is one transaction that also
appends an event, so a kill leaves the state before or the state after. One Store belongs to one thread.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..faults import refuse
from ..requests import Request, settled
from .schema import connect

QUEUED, RUNNING, INTERRUPTED = "queued", "running", "interrupted"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
OPEN = (QUEUED, RUNNING, INTERRUPTED)
DONE = (COMPLETED, FAILED, CANCELLED)
STATES = (*OPEN, *DONE)


class Job(NamedTuple):
    """A row, without its request. Times are seconds since 1970."""

    id: int
    task: str
    state: str
    held: int
    wanted: str
    priority: int
    place: float
    device: str
    phase: str
    step: int
    steps: int
    previews: int
    created: float
    started: float | None
    finished: float | None
    attempts: int
    error: str
    summary: str

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {"held": bool(self.held)}


class Event(NamedTuple):
    id: int
    job: int
    time: float
    kind: str
    data: dict[str, Any]


class Kept(NamedTuple):
    """A result of a job."""

    job: int
    name: str
    hash: str
    suffix: str
    bytes: int
    media: str
    record: dict[str, Any]
    about: dict[str, Any]
    created: float


class Row(NamedTuple):
    """A request as it is stored."""

    task: str
    request: str
    summary: str
    words: str
    device: str


COLUMNS = ", ".join(Job._fields)
INSERT = "INSERT INTO jobs (task, device, summary, created, priority, place, state) VALUES (?, ?, ?, ?, ?, ?, 'queued')"


class Store:
    """The jobs of one data folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.db = connect(self.home / "jobs.sqlite")

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def change(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction. `durable`: it survives a power cut too, not only a kill, and waits for the disk."""
        if durable:
            self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
            self.db.execute("COMMIT")
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            if durable:
                self.db.execute("PRAGMA synchronous = NORMAL")

    def append(self, job: int, kind: str, data: Mapping[str, Any] | None = None) -> None:
        """An event; within a `change`."""
        row = (job, time.time(), kind, json.dumps(data or {}, default=str))
        self.db.execute("INSERT INTO events (job, time, kind, data) VALUES (?, ?, ?, ?)", row)

    def submit(self, request: Request, *, priority: int = 0, folder: Path | None = None) -> int:
        """Queue a request, its seed drawn if it has none. Relative paths in it are relative to `folder`."""
        (found,) = self.submit_all([request], priority=priority, folder=folder)
        return found

    def submit_all(
        self, requests: Iterable[Request], *, priority: int = 0, folder: Path | None = None
    ) -> list[int]:
        """Queue all of them or none."""
        rows = [row_of(request) for request in requests]
        with self.change(durable=True):
            return self.add(rows, priority=priority, folder=folder)

    def add(self, rows: Iterable[Row], *, priority: int = 0, folder: Path | None = None) -> list[int]:
        """The same within a `change`, for those who look at the queue, or write something down, in one with it."""
        now, home, ids = time.time(), str((folder or Path()).absolute()), list[int]()
        place = self.db.execute("SELECT COALESCE(MAX(place), 0) FROM jobs").fetchone()[0]
        for i, row in enumerate(rows):
            self.db.execute(INSERT, (row.task, row.device, row.summary, now, priority, place + 1 + i))
            ids.append(int(self.db.execute("SELECT last_insert_rowid()").fetchone()[0]))
            self.db.execute(
                "INSERT INTO requests VALUES (?, ?, ?, ?)", (ids[-1], row.request, home, row.words)
            )
            self.append(ids[-1], QUEUED, {"priority": priority})
        return ids

    def get(self, id: int) -> Job:
        row = self.db.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise refuse("job", id, "is not there; `sfumato jobs list` shows the jobs")
        return Job(*row)

    def request(self, id: int) -> dict[str, Any]:
        """The request's values, as JSON has them."""
        self.get(id)
        (text,) = self.db.execute("SELECT request FROM requests WHERE job = ?", (id,)).fetchone()
        found: dict[str, Any] = json.loads(text)
        return found

    def folder(self, id: int) -> Path:
        """What relative paths of a job's request are relative to."""
        return Path(self.db.execute("SELECT folder FROM requests WHERE job = ?", (id,)).fetchone()[0])

    def queue(self, *, limit: int = -1, offset: int = 0) -> list[Job]:
        """What runs and what waits, in the order in which it will be taken."""
        running = self.db.execute(
            f"SELECT {COLUMNS} FROM jobs WHERE state = 'running' ORDER BY id"
        ).fetchall()
        waiting = self.db.execute(  # in the order of its index, so that nothing is sorted
            f"SELECT {COLUMNS} FROM jobs INDEXED BY jobs_queue WHERE state IN ('queued', 'interrupted') "
            "ORDER BY priority DESC, place LIMIT ? OFFSET ?",
            (max(limit - len(running), 0) if limit >= 0 else -1, max(offset - len(running), 0)),
        )
        return [*map(Job._make, running[offset:]), *map(Job._make, waiting)][: limit if limit >= 0 else None]

    def history(
        self,
        words: Iterable[str] = (),
        *,
        states: Iterable[str] = (),
        task: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Newest first. All words must be in the request or the error; the next page is `before` the last id."""
        clauses, values = ["1"], list[Any]()
        chosen = tuple(states)
        if chosen:
            clauses.append(f"state IN ({', '.join('?' * len(chosen))})")
            values += chosen
        if task is not None:
            clauses.append("task = ?")
            values.append(task)
        if before is not None:
            clauses.append("id < ?")
            values.append(before)
        for word in words:
            clauses.append(
                "(instr(lower(error), ?) OR id IN (SELECT job FROM requests WHERE instr(words, ?)))"
            )
            values += [word.casefold()] * 2
        where = " AND ".join(clauses)
        rows = self.db.execute(
            f"SELECT {COLUMNS} FROM jobs WHERE {where} ORDER BY id DESC LIMIT ?", (*values, limit)
        )
        return [Job(*row) for row in rows]

    def events(self, since: int = 0, *, job: int | None = None, limit: int = 1000) -> list[Event]:
        """What happened after event `since`, oldest first."""
        only, values = ("", [since]) if job is None else ("AND job = ? ", [since, job])
        rows = self.db.execute(
            f"SELECT id, job, time, kind, data FROM events WHERE id > ? {only}ORDER BY id LIMIT ?",
            (*values, limit),
        )
        return [Event(id, of, time, kind, json.loads(data)) for id, of, time, kind, data in rows]

    def artifacts(self, job: int) -> list[Kept]:
        rows = self.db.execute(
            f"SELECT {', '.join(Kept._fields)} FROM artifacts WHERE job = ? ORDER BY name", (job,)
        )
        return [_kept(row) for row in rows]

    def artifact(self, hash: str) -> Kept:
        """A result by the hash of its bytes."""
        row = self.db.execute(
            f"SELECT {', '.join(Kept._fields)} FROM artifacts WHERE hash = ? LIMIT 1", (hash,)
        ).fetchone()
        if row is None:
            raise refuse("artifact", hash, "is not there; `sfumato jobs show ID` has a job's results")
        return _kept(row)

    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        found = dict(self.db.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall())
        return {state: int(found.get(state, 0)) for state in STATES}

    def version(self) -> int:
        """Another number whenever another process has changed something: cheap to ask, for those who wait."""
        return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    def job_folder(self, id: int) -> Path:
        """Where a job's checkpoint and preview are while it is open."""
        return self.home / "jobs" / str(id)


def row_of(request: Request) -> Row:
    """A request as it is to be stored, its seed drawn if it has none."""
    values = settled(request).model_dump(mode="json")
    given = request.model_dump(mode="json", exclude_defaults=True)
    summary = " ".join(str(values.get(request.positional, "")).split())[:200]
    words = f"{request.task} {' '.join(_words(given))}".casefold()
    return Row(request.task, json.dumps(values), summary, words, str(values.get("device", "auto")))


def _kept(row: tuple[Any, ...]) -> Kept:
    found = Kept(*row)
    return found._replace(record=json.loads(row[6]), about=json.loads(row[7]))


def _words(value: Any) -> Iterator[str]:
    """All texts and numbers of a request's given values."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)
    elif value is not None:
        yield str(value)
