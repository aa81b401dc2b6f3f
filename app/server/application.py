"""The whole application: every route behind the same guard and the same identity."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from ..tasks import TASKS, Task
from . import a1111_routes, about_routes, event_routes, input_routes, job_routes, openai_routes
from .answers import listen
from .desk import Desk
from .guard import Guard
from .identity import known
from .serving import Serving

ROUTERS = (
    job_routes.router,
    event_routes.router,
    input_routes.router,
    openai_routes.router,
    a1111_routes.router,
    about_routes.router,
    about_routes.health,
)
ABOUT = """Jobs, results and capabilities of Sfumato, and the ways of OpenAI and A1111 to ask for pictures.

Paths are never read from requests: pictures are uploaded and named by id, models are named as in `/v1/capabilities`.
"""


def build_app(
    serving: Serving,
    home: Path,
    *,
    tasks: Sequence[Task] = TASKS,
    runner: Callable[[], bool] | None = None,
    pages: bool = False,
) -> FastAPI:
    """The application over one data folder. Pages may be mounted into it; `identity.known` says who asks.

    `runner` tells whether the server's own runner lives; `pages` mounts those of `sfumato ui`.
    """
    desk = Desk(serving, home, tasks, runner)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(desk.run())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    app = FastAPI(
        title="Sfumato",
        version=version("sfumato"),
        description=ABOUT,
        lifespan=life,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.desk = desk
    submission = APIRouter(prefix="/v1", dependencies=[Depends(known)], tags=["jobs"])
    submission.add_api_route(
        "/jobs",
        job_routes.submitter(tasks),
        methods=["POST"],
        status_code=201,
        responses={429: {"description": "the queue is full"}},
    )
    for router in (submission, *ROUTERS):
        app.router.routes.extend(router.routes)  # as routes, so that a walk finds every one of them
    listen(app)
    if pages:
        from ..ui.mounting import mount

        mount(app, desk)
    if serving.allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(serving.allow_origin),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
        )
    app.add_middleware(Guard, desk=desk)
    return app
