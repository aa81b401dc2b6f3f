"""Answers as JSON, and what went wrong as one sentence with its field: never a traceback."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ...pipelines.errors import BadInput, SfumatoError
from ..faults import Failure, fault_sentence, os_sentence, refuse

MEDIA = "application/json"
KINDS = {
    400: "bad_request",
    401: "no_token",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
    422: "bad_input",
    429: "too_many",
    500: "defect",
    503: "not_ready",
}


def rendered(value: object) -> bytes:
    """Escaped to ASCII: half a surrogate in somebody's text must not break the answer."""
    return json.dumps(value, default=str, separators=(",", ":")).encode()


class Json(Response):
    """Takes bytes as they are."""

    media_type = MEDIA

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else rendered(content)


def fault(
    status: int,
    sentence: str,
    field: str | None = None,
    headers: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
) -> Json:
    """In the shape of OpenAI's errors, which all entrances share. `detail` is where clients of A1111 look."""
    kind = KINDS.get(status, "error")
    error = {"message": sentence, "type": kind, "param": field, "code": kind}
    return Json({"error": error, "detail": sentence, **(more or {})}, status, headers)


async def on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    sentence = str(error.detail)
    if error.status_code == 404 and sentence == "Not Found":
        sentence = f"path: {request.url.path[:200]!r} is not there; GET /openapi.json lists what is"
    if error.status_code == 405:
        sentence = f"method: {request.method} is not for {request.url.path[:200]!r}; see GET /openapi.json"
    return fault(error.status_code, sentence, headers=headers)


async def on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    tasks = request.app.state.desk.tasks  # a body's way begins with its task, which says nothing here
    faults = [_told(found, tasks) for found in error.errors()]
    sentence = "\n".join(text for _, text in faults)
    return fault(422, sentence, faults[0][0] if faults else None)


def _told(found: Any, tasks: Collection[str]) -> tuple[str, str]:
    """Field and sentence; the way to the field is left out where the field says it all."""
    kind, place = found["type"], [part for part in found["loc"] if part not in ("body", "query", "path")]
    context = found.get("ctx", {})
    match kind:
        case "json_invalid":
            return "body", f"body: is not valid JSON ({str(context.get('error', ''))[:120]})"
        case "union_tag_invalid":
            remedy = f"is not known; known are {context['expected_tags']}"
            return "task", str(refuse("task", context["tag"], remedy))
        case "union_tag_not_found":
            return "task", "task: None is needed; GET /v1/capabilities lists the tasks"
    place = place[1:] if len(place) > 1 and place[0] in tasks else place
    if "request" in place:
        place = place[place.index("request") + 1 :] or ["request"]
    place = [part for part in place if not str(part).startswith("function-")]
    if place in ([], ["request"]) and kind == "value_error":
        return _named(str(context["error"]))
    field = str(place[0]) if place else "body"
    return field, fault_sentence({**found, "loc": tuple(place) or ("body",)}, [])


def _named(sentence: str) -> tuple[str, str]:
    """Field and sentence of a fault of the whole request, which names its field itself."""
    field, colon, _ = sentence.partition(": ")
    return (field if colon and re.fullmatch(r"[\w.-]+", field) else "request"), sentence


async def on_refused(request: Request, error: Exception) -> Response:
    field = error.field if isinstance(error, BadInput) else None
    field = _named(str(error))[0] if field == "request" else field
    sentence = re.sub(r"^(\w+: )\1", r"\1", str(error))
    return fault(422, sentence, field)


async def on_text(request: Request, error: Exception) -> Response:
    return fault(422, "request: some text in it is not valid Unicode; send UTF-8 without lone surrogates")


async def on_failure(request: Request, error: Exception) -> Response:
    return fault(503, str(error), headers={"Retry-After": "10"})


async def on_database(request: Request, error: Exception) -> Response:
    return fault(503, f"the database of jobs: {error}; try again", headers={"Retry-After": "2"})


async def on_system(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    return fault(503, os_sentence(error), headers={"Retry-After": "10"})


async def on_defect(request: Request, error: Exception) -> Response:
    """The traceback is on the server's stderr."""
    return fault(500, f"a defect of sfumato: {type(error).__name__}; the server's log has the details")


def listen(app: FastAPI) -> None:
    """Every way in which a route may end without an answer of its own."""
    handlers = {
        HTTPException: on_http,
        RequestValidationError: on_invalid,
        SfumatoError: on_refused,
        UnicodeEncodeError: on_text,
        Failure: on_failure,
        sqlite3.Error: on_database,
        OSError: on_system,
        Exception: on_defect,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
