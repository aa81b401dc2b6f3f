"""Jobs: submit, look, steer, follow; their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Path, Query
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from ...pipelines.errors import BadInput
from ..faults import unknown
from ..jobs import control
from ..jobs.artifacts import PREVIEW, artifact_path
from ..jobs.deletion import delete
from ..jobs.store import STATES, Job, Kept, Store
from ..tasks import Task
from .answers import Json
from .desk import Desk, desk_of
from .identity import known
from .submission import In, Submission, submission_type
from .thumbnails import thumbnail

router = APIRouter(prefix="/v1", dependencies=[Depends(known)], tags=["jobs"])
MOST = 2**63 - 1
T = TypeVar("T")

At = Annotated[Desk, Depends(desk_of)]
Id = Annotated[int, Path(description="number of a job", ge=1, le=MOST)]
Hash = Annotated[str, Path(description="id of a result: the SHA-256 of its bytes", pattern="^[0-9a-f]{64}$")]
Limit = Annotated[int, Query(description="most jobs", ge=1, le=1000)]


def submit(body: Any, at: In) -> Json:
    """Queue a request. The answer has the job's `id`; follow it at `/v1/jobs/{id}` or its `/events`."""
    assert isinstance(body, Submission)
    values = dict(body)
    id = at.submit(values["request"], priority=body.priority, paused=body.paused)
    return Json(told(at.desk, at.desk.store, id), 201, {"Location": f"/v1/jobs/{id}"})


def submitter(tasks: Iterable[Task]) -> Callable[..., Json]:
    """The route's function, whose body is made from the tasks."""

    def submit_job(body: Any, at: In) -> Json:
        return submit(body, at)

    submit_job.__doc__ = submit.__doc__
    submit_job.__annotations__["body"] = submission_type(tasks)
    return submit_job


@router.get("/jobs/{id}", responses={404: {"description": "there is no such job"}})
async def one_job(id: Id, at: At) -> Json:
    """All about one job: its request, how far it is, its results."""
    return Json(_found(lambda: at.answer(id, lambda store, id: told(at, store, id))))


@router.get("/jobs")
def jobs(
    at: At,
    state: Annotated[list[str] | None, Query(description=f"only these: {', '.join(STATES)}")] = None,
    task: Annotated[str | None, Query(description="only this task's", max_length=100)] = None,
    words: Annotated[str | None, Query(description="all in the request or the error", max_length=500)] = None,
    before: Annotated[
        int | None, Query(description="older than this job: the next page", ge=1, le=MOST)
    ] = None,
    limit: Limit = 50,
) -> Json:
    """The history, newest first, and how many jobs there are by state."""
    for name in state or ():
        if name not in STATES:
            raise unknown("state", name, STATES, f"known are {', '.join(STATES)}")
    store = at.store
    found = store.history((words or "").split(), states=state or (), task=task, before=before, limit=limit)
    return Json({"jobs": [job.plain() for job in found], "counts": store.counts()})


@router.get("/queue")
def queue(
    at: At, limit: Limit = 50, offset: Annotated[int, Query(description="jobs to skip", ge=0, le=10**9)] = 0
) -> Json:
    """What runs and what waits, in the order in which it will be taken."""
    found = at.store.queue(limit=limit, offset=offset)
    return Json({"jobs": [job.plain() for job in found], "counts": at.store.counts()})


@router.delete("/jobs/{id}", status_code=204, responses={404: {}, 409: {"description": "not finished"}})
def remove(id: Id, at: At) -> Response:
    """Delete a finished job and its results, for good. Refused while it runs or waits, or another job needs them."""
    store = at.store
    _found(lambda: store.get(id))
    try:
        delete(store, id)
    except BadInput as error:
        raise HTTPException(409, str(error)) from error
    return Response(status_code=204)


Deed = Literal["cancel", "pause", "resume", "retry"]
DEEDS: dict[str, Callable[[Store, int], Job]] = {
    "cancel": control.cancel,
    "pause": control.pause,
    "resume": control.resume,
    "retry": control.retry,
}


@router.post("/jobs/{id}/{deed}", responses={404: {}, 409: {"description": "not in this state"}})
def steer(id: Id, deed: Deed, at: At) -> Json:
    """Cancel, pause, resume or retry. A running job stops before its next network call."""
    return _steered(at, id, lambda store: DEEDS[deed](store, id))


@router.post("/jobs/{id}/move/{place}", responses={404: {}, 409: {"description": "not waiting"}})
def move(id: Id, place: Literal["first", "last"], at: At) -> Json:
    """To the head of the queue, or to the end of its priority."""

    def moved(store: Store) -> Job:
        head = control.first(store)
        if place == "first" and head == id:
            return store.get(id)
        return control.move(store, id, before=head if place == "first" else None)

    return _steered(at, id, moved)


@router.get(
    "/jobs/{id}/preview", response_class=Response, responses={200: {"content": {"image/png": {}}}, 404: {}}
)
def preview(id: Id, at: At) -> Response:
    """A small picture of the result so far, while the job is open. `previews` of the job counts up with each."""
    _found(lambda: at.store.get(id))
    try:
        data = (at.store.job_folder(id) / PREVIEW).read_bytes()
    except FileNotFoundError as error:
        raise HTTPException(
            404, f"preview: job {id} has none (any more); its results are in the job"
        ) from error
    return Response(data, media_type="image/png")


@router.get("/artifacts/{id}", response_class=Response, responses={200: {"content": {"*/*": {}}}, 404: {}})
def artifact(id: Hash, at: At) -> FileResponse:
    """A result, by its id alone. It never changes, so it may be kept."""
    kept = _found(lambda: at.store.artifact(id))
    path = artifact_path(at.home, kept.hash, kept.suffix)
    if not path.is_file():
        raise HTTPException(404, f"artifact: {id} was deleted")
    return FileResponse(
        path,
        headers=_lasting(kept.hash),
        media_type=kept.media,
        filename=kept.name,
        content_disposition_type="inline",
    )


@router.get(
    "/artifacts/{id}/thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/webp": {}}}, 404: {"description": "gone, or no picture"}},
)
def small(id: Hash, at: At) -> FileResponse:
    """A small WebP of a result that is a picture, for lists of many. Made when it is first asked for."""
    kept = _found(lambda: at.store.artifact(id))
    path = thumbnail(at.home, kept)
    if path is None:
        raise HTTPException(
            404, f"artifact: {id} is no picture that is there; its file is /v1/artifacts/{id}"
        )
    return FileResponse(path, headers=_lasting(f"{kept.hash}-small"), media_type="image/webp")


def _lasting(tag: str) -> dict[str, str]:
    return {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=31536000, immutable"}


def told(desk: Desk, store: Store, id: int) -> dict[str, Any]:
    """A job for JSON."""
    job = store.get(id)
    preview = f"/v1/jobs/{id}/preview" if job.previews and job.finished is None else None
    return {
        **job.plain(),
        "request": desk.inputs.told(store.request(id)),
        "preview": preview,
        "artifacts": [told_result(kept) for kept in store.artifacts(id)],
    }


def told_result(kept: Kept) -> dict[str, Any]:
    about = {key: value for key, value in kept.about.items() if key not in ("id", "url")}
    return {
        "id": kept.hash,
        "name": kept.name,
        "media": kept.media,
        "bytes": kept.bytes,
        "url": f"/v1/artifacts/{kept.hash}",
        "thumbnail": f"/v1/artifacts/{kept.hash}/thumbnail" if kept.media.startswith("image/") else None,
        "about": about,
    }


def _found(look: Callable[[], T]) -> T:
    """What is not there is a 404."""
    try:
        return look()
    except BadInput as error:
        raise HTTPException(404, str(error)) from error


def _steered(at: Desk, id: int, act: Callable[[Store], Job]) -> Json:
    store = at.store
    _found(lambda: store.get(id))
    try:
        job = act(store)
    except BadInput as error:
        raise HTTPException(409, str(error)) from error
    return Json(job.plain())
