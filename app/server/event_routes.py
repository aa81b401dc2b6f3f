"""What happens to jobs, as server-sent events. `Last-Event-ID` goes on where a broken stream ended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from ...pipelines.errors import BadInput
from ..jobs.store import DONE, Event, Job
from .desk import Desk
from .identity import known
from .job_routes import MOST, At, Id

router = APIRouter(prefix="/v1", dependencies=[Depends(known)], tags=["events"])

STILL = 15.0
"""Seconds of silence after which a comment keeps the line open."""

Since = Annotated[int, Query(description="only what came after this event", ge=0, le=MOST)]
Last = Annotated[
    str | None, Header(alias="Last-Event-ID", description="the same, sent by browsers", max_length=40)
]
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.get("/jobs/{id}/events", response_class=StreamingResponse, responses={**STREAM, 404: {}})
async def job_events(id: Id, at: At, since: Since = 0, last: Last = None) -> StreamingResponse:
    """One job's events, with `progress` in between; `end` comes last, with the job's state."""
    try:
        at.store.get(id)
    except BadInput as error:
        raise HTTPException(404, str(error)) from error
    return _stream(follow(at, id, _start(since, last)))


@router.get("/events", response_class=StreamingResponse, responses=STREAM)
async def all_events(
    at: At,
    since: Annotated[
        int | None, Query(description="after this event; from now on if not given", ge=0, le=MOST)
    ] = None,
    last: Last = None,
) -> StreamingResponse:
    """Events of all jobs."""
    if since is None:
        since = int(at.store.db.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0])
    return _stream(follow(at, None, _start(since, last)))


async def follow(desk: Desk, id: int | None, since: int) -> AsyncIterator[str]:
    """Until the job ends, the client leaves or the server stops."""
    yield "retry: 1000\n\n"
    told: tuple[Any, ...] = ()
    while not desk.draining:
        count = desk.watch.count
        for event in desk.store.events(since, job=id):
            since = event.id
            yield _event(event)
        if id is not None:
            job = desk.store.get(id)
            now = (job.phase, job.step, job.steps, job.previews)
            if now != told:
                told = now
                yield _progress(job)
            if job.state in DONE:
                yield _message("end", {"state": job.state, "error": job.error})
                return
        if not await desk.watch.after(count, STILL):
            yield ": still here\n\n"


def _start(since: int, last: str | None) -> int:
    return int(last) if last is not None and last.isdecimal() and int(last) <= MOST else since


def _stream(source: AsyncIterator[str]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(source, media_type="text/event-stream", headers=headers)


def _event(event: Event) -> str:
    return f"id: {event.id}\n{_message(event.kind, {'job': event.job, 'time': event.time, **event.data})}"


def _progress(job: Job) -> str:
    data = {"job": job.id, "phase": job.phase, "step": job.step, "steps": job.steps, "previews": job.previews}
    return _message("progress", data)


def _message(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, default=str)}\n\n"
