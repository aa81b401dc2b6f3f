"""What stands before the pages: the identity of all other routes, the few paths of Gradio that pages need, headers.

Gradio brings many routes (a proxy, streams, recordings, an API of its own). What is not named here is not there.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..server.answers import fault
from ..server.desk import Desk
from ..server.identity import PAGES, recognise

OPEN = re.compile(
    r"/?|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)/?|/(assets|static|svelte)/[\w./-]+"
    r"|/gradio_api/(queue/(join|data)|run/[\w-]+|upload|upload_progress|startup-events|heartbeat/[\w-]+|cancel|reset)/?"
    r"|/gradio_api/(file=/[^:]+|info/?|app_id/?)"
)
"""The paths that the pages use; a file is one of Gradio's own folder, which Gradio checks."""
UPLOAD = re.compile(r"/gradio_api/upload/?")
LASTING = re.compile(r"/assets/[\w./-]+|/static/(fonts|img)/[\w./-]+|/gradio_api/file=/[^:]+")
"""Files of the installed Gradio, and what was uploaded: their names have a hash."""
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; manifest-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""Gradio's page has scripts within it and builds functions from text, so these two must be allowed; nothing from
elsewhere is."""
LOOK = 0.5
"""Seconds between two looks at whether the server stops."""

SCRIPT = """
const form = document.querySelector("form"), told = document.querySelector("output");
form.addEventListener("submit", async event => {
  event.preventDefault();
  const token = form.elements.token.value.trim();
  const said = await fetch("/v1/session", {method: "POST", headers: {Authorization: `Bearer ${token}`}});
  if (said.ok) location.reload(); else told.textContent = "This token is not known here.";
});
"""
SIGN_IN = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sfumato</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{{margin:0;min-height:100vh;display:grid;place-items:center;background:#171412;color:#f1e9df;font:16px system-ui}}
form{{display:grid;gap:12px;width:min(340px,86vw)}}h1{{font:400 40px Georgia,serif;margin:0}}
input,button{{font:inherit;padding:12px;border-radius:10px;border:1px solid #7d6c5b;background:#221d1a;color:inherit}}
button{{background:#e2a76f;color:#1c140d;border:0;font-weight:600}}p{{margin:0;color:#bfb2a4}}
</style></head><body><form><h1>Sfumato</h1><p>This server asks for a token:
<code>sfumato serve token add NAME</code> makes one.</p><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Enter</button><output role="alert"></output></form><script>{SCRIPT}</script></body></html>"""
DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
SIGN_IN_POLICY = (
    f"default-src 'none'; script-src 'sha256-{DIGEST}'; style-src 'unsafe-inline'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def foreign(body: bytes, uploads: Path) -> bool:
    """Whether a call names a file that its sender has not uploaded: a path of this machine, or an address.

    Gradio has a check of its own, but asks it of applications alone that it serves itself.
    """
    try:
        return any(not _uploaded(path, uploads) for path in _paths(json.loads(body))) if body else False
    except (ValueError, RecursionError):
        return True


def _paths(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "path" and inner is not None:
                yield inner
            else:
                yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)


def _uploaded(path: object, uploads: Path) -> bool:
    if not isinstance(path, str) or "\0" in path:
        return False
    try:
        return Path(path).is_absolute() and Path(path).resolve().is_relative_to(uploads.resolve())
    except (OSError, RuntimeError):  # too long a name, a ring of links
        return False


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, as if it came now."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def told() -> Message:
        return left.pop() if left else await receive()

    return told


class Door:
    """Belongs before Gradio's application, where it is mounted."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self.app, self.desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = str(scope["path"]).removeprefix(PAGES)
        answer = self.refusal(Request(scope), path)
        if answer is not None:
            await answer(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                if LASTING.fullmatch(path) and message["status"] == HTTPStatus.OK:
                    headers["Cache-Control"] = "private, max-age=31536000, immutable"
            await send(message)

        if scope["method"] == "POST" and not UPLOAD.fullmatch(path):
            body = await Request(scope, receive).body()
            if foreign(body, self.desk.home / "uploads"):
                told = "file: is none that was uploaded here; choose it in the page"
                await fault(422, told, "file")(scope, receive, send)
                return
            receive = _again(body, receive)
        await self._until_the_end(self.app(scope, receive, sent))

    def refusal(self, request: Request, path: str) -> ASGIApp | None:
        """The answer to whoever may not come in."""
        try:
            identity = recognise(request, self.desk)
        except HTTPException as error:
            if request.method == "GET" and path in ("", "/"):
                return HTMLResponse(SIGN_IN, 401, {"Content-Security-Policy": SIGN_IN_POLICY})
            return fault(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        wait = self.desk.reads.wait(identity.name)
        if wait:
            told = f"rate: more than {self.desk.reads.per_minute} requests a minute; wait {math.ceil(wait)} s"
            return fault(429, told, headers={"Retry-After": str(math.ceil(wait))})
        if not OPEN.fullmatch(path):
            return fault(404, f"path: {path[:200]!r} is not among the pages")
        return None

    async def _until_the_end(self, answer: object) -> None:
        """Pages hold streams open as long as they are looked at; a server that stops ends them."""
        task = asyncio.ensure_future(answer)  # type: ignore[call-overload]
        try:
            while not (await asyncio.wait({task}, timeout=LOOK))[0]:
                if self.desk.draining:
                    break
            if task.done():
                task.result()
        finally:
            task.cancel()
