"""Who asks: one answer for the API and for pages.

A token comes as `Authorization: Bearer TOKEN`, as the password of `Authorization: Basic` (what clients of A1111 send),
or, for reading only, in the cookie that `POST /v1/session` sets: pictures and event streams of a page can't send
headers. What changes something needs the header, so another site's page can't do it with a visitor's cookie. The pages
under `/ui` can't send it either; there the cookie is enough if the browser says that a page of this very server asks.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from .desk import Desk, desk_of

COOKIE = "sfumato_token"
PAGES = "/ui"
"""Where pages are, if there are any."""
SAFE = ("GET", "HEAD", "OPTIONS")
ASK = {"WWW-Authenticate": 'Bearer realm="sfumato"'}


class Identity(NamedTuple):
    name: str


LOCAL = Identity("local")
"""Whoever reaches a server that listens to this machine alone and asks for no token."""

scheme = HTTPBearer(auto_error=False, description="a token of `sfumato serve token add NAME`")


async def known(
    request: Request, desk: Annotated[Desk, Depends(desk_of)], _: Annotated[object, Depends(scheme)]
) -> Identity:
    """The dependency of every route: who asks, within the rate of his token."""
    identity = recognise(request, desk)
    rate = desk.reads if request.method in SAFE else desk.changes
    wait = rate.wait(identity.name)
    if wait:
        raise HTTPException(
            429,
            f"rate: more than {rate.per_minute} requests a minute; wait {math.ceil(wait)} s",
            {"Retry-After": str(math.ceil(wait))},
        )
    return identity


def recognise(request: Request, desk: Desk) -> Identity:
    if not desk.serving.guarded:
        return LOCAL
    token = _sent(request)
    if token is None:
        raise HTTPException(401, "token: None is needed; send Authorization: Bearer TOKEN", ASK)
    name = desk.tokens.owner(token)
    if name is None:
        raise HTTPException(401, "token: what was sent is not known here; it may have been removed", ASK)
    return Identity(name)


async def open_to_all() -> None:
    """The dependency of the few routes that tell nothing: whether the server lives, and whether it is ready."""


def _sent(request: Request) -> str | None:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    match kind.lower():
        case "bearer":
            return value.strip()
        case "basic":
            try:
                return base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return None
    return request.cookies.get(COOKIE) if request.method in SAFE or _from_own_page(request) else None


def _from_own_page(request: Request) -> bool:
    """Browsers tell the origin of whatever changes something, and no page can make them lie."""
    try:
        asking = urlsplit(request.headers.get("origin", "")).netloc
    except ValueError:
        return False
    own = request.headers.get("host", "")
    return request.scope["path"].startswith(f"{PAGES}/") and bool(own) and asking.lower() == own.lower()


Known = Annotated[Identity, Depends(known)]
