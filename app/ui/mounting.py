"""The pages within the server's application: one process, one identity."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount

from ..server.answers import Json
from ..server.desk import Desk
from ..server.identity import PAGES, open_to_all, recognise
from .door import Door

FOLDER = Path(__file__).parent
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><defs><linearGradient id="a" x2="1" y2="1">'
    '<stop stop-color="#f0c08c"/><stop offset="1" stop-color="#6b3a1c"/></linearGradient></defs>'
    '<rect width="32" height="32" rx="8" fill="#171412"/><circle cx="16" cy="16" r="10" fill="url(#a)"/></svg>'
)

way_in = APIRouter(dependencies=[Depends(open_to_all)])


@way_in.get("/", include_in_schema=False)
async def entrance() -> RedirectResponse:
    """To the pages."""
    return RedirectResponse(f"{PAGES}/")


@way_in.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    """Browsers take a drawing under this name too."""
    return Response(ICON, media_type="image/svg+xml")


@way_in.get("/manifest.json", include_in_schema=False)
async def manifest() -> Json:
    """What a phone wants to know to put the pages on its first screen."""
    icons = [{"src": "/favicon.ico", "type": "image/svg+xml", "sizes": "any"}]
    about = {"name": "Sfumato", "short_name": "Sfumato", "start_url": f"{PAGES}/", "display": "standalone"}
    return Json({**about, "background_color": "#14110f", "theme_color": "#14110f", "icons": icons})


def mount(app: FastAPI, desk: Desk) -> None:
    """Make the pages and put them behind their door."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(desk.home / "uploads")  # else a folder that all users share
    import gradio

    from .look import css, theme
    from .studio import studio

    blocks = studio(desk)
    gradio.mount_gradio_app(
        app,
        blocks,
        PAGES,
        root_path=PAGES,  # else files are looked for outside of the pages
        auth_dependency=lambda request: _name(request, desk),
        allowed_paths=[],
        blocked_paths=[str(desk.home / name) for name in ("tokens.json", "jobs.sqlite", "models.json")],
        max_file_size=desk.serving.upload_bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=theme(),
        css=css(),
        head=_head(),
    )
    blocks.has_launched = True  # else Gradio does not ask whether a file was uploaded
    (place,) = (route for route in app.router.routes if isinstance(route, Mount))
    place.app = Door(place.app, desk)
    app.router.routes.extend(way_in.routes)


def _head() -> str:
    script = (FOLDER / "pages.js").read_text(encoding="utf-8")
    return f'<link rel="icon" type="image/svg+xml" href="/favicon.ico"><script>{script}</script>'


def _name(request: Request, desk: Desk) -> str:
    """Who asks, for Gradio; the door has checked it already."""
    return recognise(request, desk).name
