"""The API of A1111's web UI, as far as pictures are made from prompts and pictures."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request
from PIL import Image
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ...pipelines.errors import SfumatoError
from ..dialects import recover
from ..faults import refuse
from ..jobs.artifacts import PREVIEW
from ..jobs.store import CANCELLED, DONE, RUNNING
from ..metadata import parameters, read_texts
from .a1111 import (
    Img2Img,
    Txt2Img,
    Understood,
    encoded,
    labels,
    left,
    model_name,
    share,
    take_pictures,
    told_info,
    understand,
)
from .about_routes import all_models
from .answers import Json
from .desk import Desk
from .identity import known
from .job_routes import At
from .submission import In, Intake
from .waiting import complete, ended, give_up, pictures

router = APIRouter(prefix="/sdapi/v1", dependencies=[Depends(known)], tags=["a1111"])

DEFAULT = "still-life"


@router.post("/txt2img", responses={409: {}, 429: {}})
async def txt2img(body: Annotated[Txt2Img, Body()], at: In, asked: Request) -> Json:
    """Make pictures, and wait for them. Who leaves before they are there cancels the job."""
    return await _made(understand(body, {}, at.desk.model), body, at, asked)


@router.post("/img2img", responses={409: {}, 413: {}, 429: {}})
async def img2img(body: Annotated[Img2Img, Body()], at: In, asked: Request) -> Json:
    """The same from a picture, or within a mask."""
    given = await asyncio.to_thread(take_pictures, body, at.desk.inputs)
    return await _made(understand(body, given, at.desk.model), body, at, asked)


async def _made(found: Understood, body: Txt2Img, at: Intake, asked: Request) -> Json:
    desk = at.desk
    id = await asyncio.to_thread(at.submit, found.request)
    desk.asked.append(id)
    try:
        job = await ended(desk, id, asked)
    finally:
        desk.asked.remove(id)
    if job.state != CANCELLED:  # what was finished before an interruption is given, as A1111 does
        complete(job)
    made = await asyncio.to_thread(lambda: pictures(desk.store, id))
    seeds = [int(kept.about.get("seed", -1)) for kept, _ in made]
    texts = [parameters(kept.record) for kept, _ in made]
    said = body.model_dump(mode="json", exclude={"init_images", "mask"})
    info = told_info(found.request, seeds, texts, found.notes)
    return Json({"images": [encoded(data) for _, data in made], "parameters": said, "info": info})


@router.get("/progress")
def progress(
    at: At, skip_current_image: Annotated[bool, Query(description="leave the preview out")] = False
) -> Json:
    """How far what A1111's clients wait for is."""
    jobs = [at.store.get(id) for id in list(at.asked)]
    waiting = [job for job in jobs if job.state not in DONE]
    job = next((job for job in waiting if job.state == RUNNING), None)
    done = 0.0 if job is None else share(job.step, job.steps)
    picture = None
    if job is not None and job.previews and not skip_current_image:
        picture = _preview(at, job.id)
    state = {
        "skipped": False,
        "interrupted": any(job.wanted == "cancel" for job in waiting),
        "job": "" if job is None else f"job {job.id}",
        "job_count": len(waiting),
        "job_no": 0,
        "job_timestamp": "0" if job is None else time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "sampling_step": 0 if job is None else job.step,
        "sampling_steps": 0 if job is None else job.steps,
    }
    spent = 0.0 if job is None or job.started is None else time.time() - job.started
    told = {"progress": done, "eta_relative": left(spent, done), "state": state}
    return Json({**told, "current_image": picture, "textinfo": "" if job is None else job.phase})


def _preview(at: Desk, id: int) -> str | None:
    try:
        return encoded((at.store.job_folder(id) / PREVIEW).read_bytes())
    except FileNotFoundError:  # it ended meanwhile
        return None


@router.post("/interrupt")
@router.post("/skip")
def interrupt(at: At) -> Json:
    """Cancel what A1111's clients wait for; they get what is finished."""
    for id in list(at.asked):
        give_up(at, id)
    return Json({})


class Options(BaseModel):
    """What can be set; the rest of A1111's options is not there."""

    sd_model_checkpoint: str | None = Field(None, description="the model of requests that name none")


@router.get("/options")
def options(at: At) -> Json:
    """The options in force."""
    return Json(
        {"sd_model_checkpoint": at.model or DEFAULT, "samples_format": "png", "CLIP_stop_at_last_layers": 1}
    )


@router.post("/options")
def set_options(body: dict[str, Any], at: At) -> Json:
    """Choose the model of requests that name none, until the server ends. It holds for all clients of A1111."""
    for name, value in body.items():
        if name != "sd_model_checkpoint":
            raise refuse(name, value, "can't be set here; sd_model_checkpoint alone can")
    if "sd_model_checkpoint" in body:
        at.model = at.places.model(model_name(body["sd_model_checkpoint"]), "sd_model_checkpoint")
    return Json({})


@router.get("/samplers")
def samplers() -> Json:
    """The samplers, under A1111's names where it has them."""
    return Json([{"name": label, "aliases": [id], "options": {}} for label, id in labels("sampler")])


@router.get("/schedulers")
def schedulers() -> Json:
    """The schedules, under A1111's names where it has them."""
    found = [{"name": id, "label": label, "aliases": [id]} for label, id in labels("schedule")]
    return Json([{"name": "automatic", "label": "Automatic", "aliases": None}, *found])


@router.get("/sd-models")
def sd_models() -> Json:
    """The models by name."""
    rows = [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in all_models()
    ]
    return Json(rows)


class PngInfo(BaseModel):
    image: str = Field(description="a picture in base64")


@router.post("/png-info", responses={413: {}})
def png_info(body: PngInfo, at: At) -> Json:
    """How a picture was made, as it says itself."""
    data = at.inputs.decoded(body.image, "image")
    at.inputs.check(data, "image")
    image = Image.open(io.BytesIO(data))
    image.load()
    texts = read_texts(image)
    try:
        found = recover(texts)
    except SfumatoError as error:
        raise HTTPException(422, f"image: holds broken metadata: {error}") from error
    fields = {} if found is None else found.fields()
    fields.pop("record", None)
    return Json({"info": texts.get("parameters", ""), "items": texts, "parameters": fields})
