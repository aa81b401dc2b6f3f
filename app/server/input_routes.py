"""Pictures for requests: uploaded as a form or as base64, or by URL where that is switched on."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, File, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from ..faults import refuse
from .answers import Json
from .identity import known
from .inputs import Input
from .job_routes import At
from .remote import fetch

router = APIRouter(prefix="/v1", dependencies=[Depends(known)], tags=["inputs"])


class Upload(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: str | None = Field(None, description="a PNG, JPEG or WebP picture in base64")
    url: str | None = Field(None, description="where it is, if this server fetches", max_length=2000)


@router.post("/inputs", status_code=201)
def upload(body: Annotated[Upload, Body()], at: At) -> Json:
    """Keep a picture for requests, which name it by the `id` that is given back. Kept for a week, or while needed."""
    if (body.data is None) == (body.url is None):
        raise refuse("data", None, "is needed: the picture in base64, or its url")
    at.inputs.sweep(at.store)
    if body.data is not None:
        return _told(at.inputs.take_text(body.data, "data"))
    assert body.url is not None
    if not at.serving.urls:
        raise refuse("url", body.url, "is not fetched here; send data, or the operator says --urls")
    return _told(at.inputs.take(fetch(body.url, at.serving.upload_bytes), "url"))


@router.post("/inputs/form", status_code=201)
def upload_form(file: Annotated[UploadFile, File(description="the picture")], at: At) -> Json:
    """The same as a form (multipart/form-data), for files as they are."""
    at.inputs.sweep(at.store)
    return _told(at.inputs.take(file.file.read(), "file"))


async def form_of(request: Request) -> dict[str, list[Any]]:
    """A form's fields, each with its values; those of OpenAI's client are called `image` or `image[]`."""
    form = await request.form(max_files=20, max_fields=100)
    found: dict[str, list[Any]] = {}
    for name, value in form.multi_items():
        content = value if isinstance(value, str) else await run_in_threadpool(value.file.read)
        found.setdefault(name.removesuffix("[]"), []).append(content)
    return found


def _told(found: Input) -> Json:
    return Json(found._asdict(), 201)
