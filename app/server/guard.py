"""What stands before every route: the host and origin that are meant, the size of the body, security headers.

A page of another site can reach a server on this machine through the visitor's browser: under a name of its own that
it has pointed here (so Host must be one of ours), or by a plain form or script (so Origin must be too).
"""

from __future__ import annotations

import ipaddress
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import Json, fault
from .desk import Desk
from .identity import SAFE, recognise
from .serving import is_loopback

METHODS = (*SAFE, "POST", "PUT", "PATCH", "DELETE")
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cache-Control": "no-store",
}
"""Unless a route says otherwise."""


class Guard:
    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self.app, self.desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and self.refused(scope, "WEBSOCKET") is not None:
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, seen = time.perf_counter(), [500]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen[0] = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
                if self.desk.draining:
                    headers["Connection"] = "close"
            await send(message)

        refused = self.refused(scope, scope["method"])
        try:
            if refused is None:
                await self.app(scope, self._counted(receive), answer)
            else:
                await refused(scope, receive, answer)
        finally:
            path = scope["route"].path if "route" in scope else "other"
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.desk.metrics.count(method, path, seen[0], time.perf_counter() - began)

    def refused(self, scope: Scope, method: str) -> Json | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self.is_own(host):
            remedy = "is no name of this server; the operator allows it with --allow-host"
            return fault(421, f"host: {host[:80]!r} {remedy}", "host")
        origin = headers.get("origin")
        foreign = origin is not None and not self.is_own_page(origin, host)
        if origin is None:
            foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and method not in SAFE:
            remedy = "is another site's page; the operator allows it with --allow-origin"
            return fault(403, f"origin: {(origin or 'null')[:80]!r} {remedy}", "origin")
        if len(headers.getlist("content-length")) > 1:
            return fault(400, "content-length: is given twice; send it once", "content-length")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.desk.serving.upload_bytes:
            return fault(413, self.too_large(), "body")
        if scope["type"] == "http" and (length != "0" or "transfer-encoding" in headers):
            return self.stranger(Request(scope))
        return None

    def stranger(self, request: Request) -> Json | None:
        """A body is read before a route's dependencies are asked, so strangers are turned away here already."""
        try:
            recognise(request, self.desk)
        except HTTPException as error:
            return fault(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        return None

    def is_own(self, host: str) -> bool:
        """Names that lead to this machine alone, those the operator has told; addresses if it listens to others."""
        name = _name(host)
        if name is None:
            return False
        serving = self.desk.serving
        allowed = {value.lower() for value in (*serving.allow_host, serving.host.strip("[]"))}
        return is_loopback(name) or name in allowed or (not serving.loopback and _is_address(name))

    def is_own_page(self, origin: str, host: str) -> bool:
        if origin in self.desk.serving.allow_origin:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

    def too_large(self) -> str:
        most = self.desk.serving.upload_bytes
        return f"body: is larger than {most} bytes; send less, or the operator raises --upload-bytes"

    def _counted(self, receive: Receive) -> Receive:
        """The body, until it is too large: a length need not be told beforehand."""
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.desk.serving.upload_bytes:
                raise HTTPException(413, self.too_large())
            return message

        return counted


def _name(host: str) -> str | None:
    """The host's name without its port; None for what is no host."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
