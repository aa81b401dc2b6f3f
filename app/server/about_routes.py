"""What the server can do, whether it lives, what it counts, its schema; and the cookie for pages."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from ...pipelines.doors.hub import all_pulled
from ..catalogue import techniques
from ..inspection import builtin_models
from ..metadata import versions
from ..model_paths import paths_file, read_model_paths, shared_files
from ..registry import read_registry
from .answers import Json
from .desk import Desk
from .identity import COOKIE, Known, known, open_to_all, scheme
from .job_routes import At

router = APIRouter(dependencies=[Depends(known)], tags=["server"])
health = APIRouter(dependencies=[Depends(open_to_all)], tags=["server"])


@health.get("/healthz")
async def alive() -> Json:
    """Whether the process answers."""
    return Json({"ok": True})


@health.get("/readyz", responses={503: {"description": "not now"}})
async def ready(at: At) -> Json:
    """Whether new jobs are taken and somebody runs them."""
    problems = ["the server is stopping"] if at.draining else []
    if at.runner is not None and not at.runner():
        problems.append("the runner has ended; the server's log says why")
    at.store.version()
    return Json({"ok": not problems, "problems": problems}, 503 if problems else 200)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(at: At) -> Response:
    """Numbers for Prometheus."""
    alive = at.runner is not None and at.runner()
    return Response(at.metrics.text(at.store, time.time(), alive), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request) -> Json:
    """The schema of this API."""
    return Json(request.app.openapi())


@router.get("/v1/capabilities")
def capabilities(at: At) -> Json:
    """Tasks with the schema of their requests, models, LoRAs, techniques, limits."""
    serving = at.serving
    return Json(
        {
            "versions": versions(),
            "tasks": {
                name: {
                    "about": task.request.__doc__,
                    "medium": task.request.medium,
                    "request": task.request.model_json_schema(),
                }
                for name, task in at.tasks.items()
            },
            "models": model_names(),
            "loras": lora_names(),
            "techniques": {
                name: {"kind": e.kind, "about": e.summary, "aliases": list(e.aliases)}
                | {"settings": {s.name: {"type": s.type, "about": s.help} for s in e.settings}}
                for name, e in techniques().items()
            },
            "limits": serving.model_dump(
                include={"queue", "rate", "reads", "upload_bytes", "pixels", "frames"}
            ),
            "urls": serving.urls,
            "runner": at.runner is not None,
        }
    )


def model_names() -> dict[str, list[str]]:
    """What `model` may be, by where it comes from."""
    file = paths_file()
    shared = shared_files(read_model_paths(file)) if file else {}
    kinds = ("checkpoints", "diffusion_models")
    return {
        "builtin": [model["name"] for model in builtin_models()],
        "remembered": sorted(name for name, entry in read_registry().items() if not entry.is_lora),
        "pulled": all_pulled(),
        "shared": sorted({path.name for kind in kinds for path in shared.get(kind, [])}),
    }


def lora_names() -> list[str]:
    """Remembered LoRAs, which `loras` and prompts may name."""
    return sorted(name for name, entry in read_registry().items() if entry.is_lora)


def all_models() -> list[str]:
    return list(dict.fromkeys(name for names in model_names().values() for name in names))


@router.post("/v1/session", status_code=204)
async def begin(
    at: At,
    request: Request,
    identity: Known,
    sent: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)],
) -> Response:
    """Let a page read with a cookie, as pictures and event streams need. Changes still need the header."""
    answer = Response(status_code=204)
    if sent is not None and at.serving.guarded:
        secure = request.url.scheme == "https" or not at.serving.loopback
        answer.set_cookie(
            COOKIE, sent.credentials, httponly=True, samesite="strict", secure=secure, max_age=30 * 86400
        )
    return answer


@router.delete("/v1/session", status_code=204)
async def end() -> Response:
    """Take the cookie back."""
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def video_tasks(at: Desk) -> list[str]:
    return [name for name, task in at.tasks.items() if task.request.medium == "video"]


def no_video(at: Desk) -> HTTPException:
    """Said as long as no task makes clips."""
    known = ", ".join(at.tasks)
    return HTTPException(
        404, f"task: no task of this sfumato makes videos; there are {known}, for POST /v1/jobs"
    )


def listing(names: list[str]) -> dict[str, Any]:
    """As OpenAI lists models."""
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": "sfumato"} for name in names]
    return {"object": "list", "data": rows}
