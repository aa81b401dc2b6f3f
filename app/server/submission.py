"""Requests from outside into the queue: their shape from the tasks, no more than the queue may hold, once per key."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import Depends, Header
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.exceptions import HTTPException

from ..devices import check_device
from ..faults import refuse
from ..jobs.store import Store, row_of
from ..requests import Request
from ..tasks import Task
from .desk import Desk, desk_of
from .identity import Identity, known

KEYS = """CREATE TABLE IF NOT EXISTS api_keys (     -- jobs by the key under which they were submitted
    owner TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, job INTEGER NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (owner, key))"""
KEY_DAYS = 2
MOST_WAIT = 600


class Submission(BaseModel):
    """What a job is asked for with, whatever its task; `task` and `request` are those of each task."""

    model_config = ConfigDict(extra="forbid")

    priority: int = Field(0, description="higher runs earlier", ge=-1000, le=1000)
    paused: bool = Field(False, description="wait until it is resumed")


def submission_type(tasks: Iterable[Task]) -> Any:
    """One body per task, told apart by `task`: a new task needs nothing here."""
    kinds = [_kind(task.request) for task in tasks]
    one_of: Any = functools.reduce(operator.or_, kinds)
    return one_of if len(kinds) == 1 else Annotated[one_of, Field(discriminator="task")]


def _kind(request: type[Request]) -> type[BaseModel]:
    name, about = request.task, request.__doc__ or ""
    task, asked = Field(description=about), Field(description=f"the request of {name}")
    title = f"Submit{''.join(part.capitalize() for part in name.split('-'))}"
    chosen: Any = Literal[name]
    return create_model(
        title, __base__=Submission, __doc__=about, task=(chosen, task), request=(request, asked)
    )


class Intake(NamedTuple):
    """Who submits, and the key under which the same is not submitted twice."""

    desk: Desk
    identity: Identity
    key: str | None

    def submit(self, request: Request, *, priority: int = 0, paused: bool = False) -> int:
        """The id of a new job, or of the one that came with this key. For a thread, as it waits for the disk."""
        desk = self.desk
        if desk.draining:
            raise HTTPException(503, "server: is stopping; submit again soon", {"Retry-After": "10"})
        asked = [request.task, request.model_dump(mode="json"), priority, paused]
        if desk.serving.runner and desk.serving.engine == "local":
            check_device(str(dict(request).get("device", "auto")))
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        store, folder = desk.store, desk.places.folder()
        row = row_of(desk.places.admitted(request, store))
        with store.change(durable=True) as db:
            db.execute(KEYS)
            earlier = self._earlier(store, digest)
            if earlier is not None:
                return earlier
            self._room(store)
            (id,) = store.add([row], priority=priority, folder=folder)
            if paused:
                db.execute("UPDATE jobs SET held = 1 WHERE id = ?", (id,))
                store.append(id, "paused")
            if self.key is not None:
                now = time.time()
                db.execute("DELETE FROM api_keys WHERE time < ?", (now - KEY_DAYS * 86400,))
                values = (self.identity.name, self.key, digest, id, now)
                db.execute("INSERT OR REPLACE INTO api_keys VALUES (?, ?, ?, ?, ?)", values)
        return id

    def _earlier(self, store: Store, digest: str) -> int | None:
        row = store.db.execute(
            "SELECT digest, job FROM api_keys WHERE owner = ? AND key = ? AND job IN (SELECT id FROM jobs)",
            (self.identity.name, self.key),
        ).fetchone()
        if row is None:
            return None
        if row[0] != digest:
            raise refuse("Idempotency-Key", self.key, "came with another request; use a new key")
        return int(row[1])

    def _room(self, store: Store) -> None:
        waiting = store.db.execute(
            "SELECT COUNT(*) FROM jobs INDEXED BY jobs_queue WHERE state IN ('queued', 'interrupted')"
        ).fetchone()[0]
        most = self.desk.serving.queue
        if waiting >= most:
            wait = seconds_per_job(store)
            sentence = f"queue: {waiting} jobs wait, {most} are allowed; try again in {wait} s"
            raise HTTPException(429, sentence, {"Retry-After": str(wait)})


def seconds_per_job(store: Store) -> int:
    """Of the last jobs: about when there is room again."""
    row = store.db.execute(
        "SELECT AVG(finished - started) FROM (SELECT started, finished FROM jobs INDEXED BY jobs_state "
        "WHERE state = 'completed' ORDER BY id DESC LIMIT 10)"
    ).fetchone()
    return 5 if row[0] is None else min(MOST_WAIT, max(1, round(row[0])))


Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="the same key with the same request gives the same job, for two days",
        min_length=1,
        max_length=200,
    ),
]


async def intake(
    desk: Annotated[Desk, Depends(desk_of)],
    identity: Annotated[Identity, Depends(known)],
    key: Key = None,
) -> Intake:
    return Intake(desk, identity, key)


In = Annotated[Intake, Depends(intake)]
