"""For those who ask for pictures and wait for them: the job's end, or its cancelling if they leave."""

from __future__ import annotations

import asyncio

from fastapi import Request as Asked
from starlette.exceptions import HTTPException

from ...pipelines.errors import BadInput
from ..jobs import control
from ..jobs.artifacts import artifact_path
from ..jobs.store import COMPLETED, DONE, FAILED, Job, Kept, Store
from .desk import Desk

LOOK = 0.25
"""Seconds between two looks at whether the client is still there."""


async def ended(desk: Desk, id: int, asked: Asked) -> Job:
    """The job at its end. A client that leaves cancels it; a server that stops says which job goes on."""
    while True:
        count = desk.watch.count
        job = desk.store.get(id)
        if job.state in DONE:
            return job
        if desk.draining:
            sentence = f"server: is stopping; job {id} goes on afterwards, GET /v1/jobs/{id} tells how far"
            raise HTTPException(503, sentence, {"Retry-After": "10"})
        if await asked.is_disconnected():
            await asyncio.to_thread(give_up, desk, id)
            raise HTTPException(409, f"job: {id} was cancelled, as its client left")
        await desk.watch.after(count, LOOK)


def give_up(desk: Desk, id: int) -> None:
    try:
        control.cancel(desk.store, id)
    except BadInput:  # it ended meanwhile
        return


def complete(job: Job) -> None:
    """Refuse to answer with the results of a job that has none."""
    if job.state == FAILED:
        raise HTTPException(422, f"{job.error} (job {job.id})")
    if job.state != COMPLETED:
        raise HTTPException(409, f"job: {job.id} was {job.state}; ask again")


def pictures(store: Store, id: int) -> list[tuple[Kept, bytes]]:
    """The results of a job that are pictures, in their order. For a thread."""
    found = []
    for kept in store.artifacts(id):
        if kept.media.startswith("image/"):
            found.append((kept, artifact_path(store.home, kept.hash, kept.suffix).read_bytes()))
    return found
