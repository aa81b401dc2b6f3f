"""OpenAI's way to ask for pictures: `images/generations`, `images/edits`, `models`; `videos` says that there are none.

Fields that we share have OpenAI's names; every other field of `generate` (steps, seed, negative, techniques ...) may
stand beside them. What would change the picture and can't be done is refused, never dropped.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Request
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...pipelines.errors import BadInput
from ..faults import refuse, validation_sentences
from ..jobs.store import Kept
from ..metadata import encoder
from ..requests import GenerateRequest
from ..settings import make_request
from .about_routes import all_models, listing, no_video
from .answers import Json
from .identity import known
from .input_routes import form_of
from .job_routes import At
from .submission import In, Intake
from .waiting import complete, ended, pictures

router = APIRouter(prefix="/v1", dependencies=[Depends(known)], tags=["openai"])

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "style": (),
    "stream": (False, "false"),
    "partial_images": (0, "0"),
    "input_fidelity": (),
    "output_compression": (),
}
"""Fields of OpenAI that we have no use for, and the values that ask for nothing."""
HARMLESS = ("user", "moderation")


class ImageBody(BaseModel):
    """What is asked for. Other fields are those of `generate`."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(description="what the picture shows")
    model: str | None = Field(None, description="GET /v1/models lists them; the built-in one if not given")
    n: int | None = Field(None, description="number of pictures", ge=1, le=10000)
    size: str | None = Field(None, description="WIDTHxHEIGHT or auto")
    response_format: Literal["url", "b64_json"] | None = Field(None, description="b64_json if not given")
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="png if not given")


FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "mask": {"type": "string", "format": "binary"},
                        "prompt": {"type": "string"},
                    },
                }
            }
        },
    }
}


@router.get("/models")
def models() -> Json:
    """The models by name, as OpenAI lists them."""
    return Json(listing(all_models()))


@router.post("/images/generations", responses={409: {}, 429: {}})
async def generations(body: Annotated[ImageBody, Body()], at: In, asked: Request) -> Json:
    """Make pictures, and wait for them. Who leaves before they are there cancels the job."""
    return await _made(body, {}, at, asked)


@router.post("/images/edits", openapi_extra=FORM, responses={409: {}, 413: {}, 429: {}})
async def edits(at: In, asked: Request) -> Json:
    """Make pictures from a picture, and wait for them. Where the mask (or the picture) is transparent is repainted."""
    form = await form_of(asked)
    files = {name: form.pop(name, []) for name in ("image", "mask")}
    for name, values in form.items():
        if len(values) > 1 or not isinstance(values[0], str):
            raise refuse(name, f"{len(values)} values", "can't be read; send one text")
    body = make_body({name: values[0] for name, values in form.items()})
    given = await asyncio.to_thread(take_pictures, at, files)
    return await _made(body, given, at, asked)


@router.post("/videos", responses={404: {"description": "no task makes videos"}})
async def videos(at: At) -> Json:
    """Not there yet; the answer says which tasks are."""
    raise no_video(at)


@router.get("/videos/{id}", responses={404: {"description": "no task makes videos"}})
async def video(id: str, at: At) -> Json:
    """Not there yet; the answer says which tasks are."""
    raise no_video(at)


def make_body(values: dict[str, str]) -> ImageBody:
    """A form's texts, checked like JSON; lists and objects are given as JSON."""
    found: dict[str, Any] = {}
    for name, text in values.items():
        found[name] = json.loads(text) if _is_list(text) and name != "prompt" else text
    if "prompt" not in found:
        raise refuse("prompt", None, "is needed")
    return make_checked(found)


def make_checked(values: dict[str, Any]) -> ImageBody:
    try:
        return ImageBody.model_validate(values)
    except ValidationError as error:
        field = str(error.errors(include_url=False)[0]["loc"][0])
        raise BadInput(field, "\n".join(validation_sentences(error, ImageBody.model_fields))) from error


def request_of(body: ImageBody, given: dict[str, Any], default: str | None) -> GenerateRequest:
    extra = dict(body.model_extra or {})
    for name in list(extra):
        if name in HARMLESS:
            extra.pop(name)
        elif name in NEUTRAL:
            value = extra.pop(name)
            if value is not None and value not in NEUTRAL[name]:
                remedy = "is not served here; leave it out, and say how with fields of generate, as steps"
                raise refuse(name, value, remedy)
    values: dict[str, Any] = {**extra, **given, "prompt": body.prompt}
    for name in ("image", "mask", "count"):
        if name in extra and name not in given:
            raise refuse(name, extra[name], "is given as n, or as a file of POST /v1/images/edits")
    if body.n is not None:
        values["count"] = body.n
    if (model := body.model or default) is not None:
        values["model"] = model
    if body.size not in (None, "auto"):
        values["size"] = body.size
    return make_request(GenerateRequest, values)


async def _made(body: ImageBody, given: dict[str, Any], at: Intake, asked: Request) -> Json:
    request = request_of(body, given, at.desk.model)
    id = await asyncio.to_thread(at.submit, request)
    complete(await ended(at.desk, id, asked))
    host = f"{asked.url.scheme}://{asked.headers['host']}"
    data = await asyncio.to_thread(_data, at, id, body, host)
    return Json({"created": int(time.time()), "data": data, "job": id})


def _data(at: Intake, id: int, body: ImageBody, host: str) -> list[dict[str, Any]]:
    kind = (body.output_format or "png").upper()
    if body.response_format == "url":
        if kind != "PNG":
            raise refuse("output_format", body.output_format, "has no URL; ask for b64_json")
        return [{"url": f"{host}/v1/artifacts/{kept.hash}"} for kept, _ in pictures(at.desk.store, id)]
    found = [converted(kept, data, kind) for kept, data in pictures(at.desk.store, id)]
    return [{"b64_json": base64.b64encode(data).decode()} for data in found]


def converted(kept: Kept, data: bytes, kind: str) -> bytes:
    """The picture with its record in another format."""
    if kind == "PNG":
        return data
    target = io.BytesIO()
    encoder(Image.open(io.BytesIO(data)), kind, kept.record)(target)
    return target.getvalue()


def take_pictures(at: Intake, files: dict[str, list[Any]]) -> dict[str, str]:
    """The ids of the picture and of our mask: OpenAI's is transparent where ours is white."""
    if len(files["image"]) != 1 or not isinstance(files["image"][0], bytes):
        raise refuse("image", f"{len(files['image'])} files", "can't be edited; send one")
    inputs, image = at.desk.inputs, files["image"][0]
    found = {"image": inputs.take(image, "image").id}
    if files["mask"]:
        if len(files["mask"]) != 1 or not isinstance(files["mask"][0], bytes):
            raise refuse("mask", f"{len(files['mask'])} files", "can't be used; send one")
        inputs.check(files["mask"][0], "mask")
        mask = mask_of(files["mask"][0])
        if mask is None:
            raise refuse("mask", "the picture", "has no transparency; make it transparent where to repaint")
    else:
        mask = mask_of(image)
    if mask is not None:
        found["mask"] = inputs.take(mask, "mask").id
    return found


def mask_of(data: bytes) -> bytes | None:
    """White where a picture is transparent; None if it is nowhere."""
    image = Image.open(io.BytesIO(data))
    if not image.has_transparency_data:
        return None
    mask = ImageOps.invert(image.convert("RGBA").getchannel("A"))
    if mask.getextrema() == (0, 0):
        return None
    target = io.BytesIO()
    mask.save(target, "PNG")
    return target.getvalue()


def _is_list(text: str) -> bool:
    if text[:1] not in "[{" or not text:
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
