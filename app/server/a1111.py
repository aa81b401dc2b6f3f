"""A1111's requests in our words. What would change the picture and can't be done is refused; what A1111 does a little
differently is noted in the answer's `info`.
"""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any, NamedTuple

from PIL import Image, ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from ..builder import by_name
from ..faults import refuse, unknown
from ..metadata import A1111_SAMPLERS, A1111_SCHEDULES
from ..requests import GenerateRequest
from ..settings import make_request
from .inputs import Inputs

AUTOMATIC = ("automatic", "")
UNUSED = {
    "do_not_save_samples", "do_not_save_grid", "save_images", "send_images", "include_init_images",
    "override_settings_restore_afterwards", "script_args", "subseed", "firstphase_width", "firstphase_height",
    "image_cfg_scale", "inpaint_full_res_padding", "force_task_id", "infotext", "comments", "disable_extra_networks",
    "refiner_switch_at", "s_min_uncond", "s_tmax", "s_noise", "eta", "hr_scale", "hr_upscaler", "hr_second_pass_steps",
    "hr_resize_x", "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt",
    "hr_negative_prompt", "latent_mask", "mask_blur_x", "mask_blur_y",
}  # fmt: skip
"""Fields that change nothing here: they are about saving, or about what is switched off by a field that is checked."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "subseed_strength": (0,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "s_churn": (0,),
    "s_tmin": (0,),
    "initial_noise_multiplier": (1,),
    "resize_mode": (0, 1),
}
"""Values that ask for nothing, beside null, false and what is empty."""


class Txt2Img(BaseModel):
    """A1111's request. Fields that are left out take the model's own values."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field("", description="what the picture shows")
    negative_prompt: str = Field("", description="what to steer away from")
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = Field(None, description="-1 is random")
    batch_size: int = Field(1, ge=1, le=1000)
    n_iter: int = Field(1, ge=1, le=1000)
    sampler_name: str | None = None
    sampler_index: str | None = Field(None, description="older name of sampler_name")
    scheduler: str | None = None
    override_settings: dict[str, Any] | None = Field(None, description="sd_model_checkpoint is read")
    alwayson_scripts: dict[str, Any] | None = Field(None, description="none are served")
    denoising_strength: float | None = Field(None, description="of img2img; 0.75 there if not given")


class Img2Img(Txt2Img):
    """The same from a picture."""

    init_images: list[str] = Field(description="one picture in base64")
    mask: str | None = Field(None, description="a picture in base64: white is repainted")
    mask_blur: float = Field(0, description="radius by which the mask is blurred, pixels", ge=0, le=256)
    inpainting_mask_invert: int = Field(0, description="1: black is repainted", ge=0, le=1)
    inpainting_fill: int = Field(1, description="what is under the mask at first: 1 the picture itself")
    inpaint_full_res: bool = Field(False, description="repaint at full size: not served, noted")


class Understood(NamedTuple):
    request: GenerateRequest
    notes: tuple[str, ...]


def understand(body: Txt2Img, pictures: dict[str, str], model: str | None) -> Understood:
    """Our request. `pictures` are those that came along, by field; `model` what the options chose."""
    override = dict(body.override_settings or {})
    chosen = override.pop("sd_model_checkpoint", None) or model
    _check(body, override)
    values: dict[str, Any] = {
        "prompt": body.prompt,
        "negative": body.negative_prompt,
        "steps": body.steps,
        "guidance": body.cfg_scale,
        "width": body.width,
        "height": body.height,
        "seed": None if body.seed is None or body.seed < 0 else body.seed,
        "count": body.batch_size * body.n_iter,
        "batch": body.batch_size,
        "sampler": sampler(body.sampler_name or body.sampler_index),
        "schedule": schedule(body.scheduler),
        **pictures,
    }
    if "image" in pictures:
        values["strength"] = 0.75 if body.denoising_strength is None else body.denoising_strength
    if chosen is not None:
        values["model"] = model_name(chosen)
    given = {key: value for key, value in values.items() if value is not None}
    return Understood(make_request(GenerateRequest, given), notes(body, "mask" in pictures))


def _check(body: Txt2Img, override: dict[str, Any]) -> None:
    for name, value in (body.model_extra or {}).items():
        if name in UNUSED or value in (None, False, "", [], {}) or value in NEUTRAL.get(name, ()):
            continue
        if name == "enable_hr" or name == "script_name" or name in NEUTRAL:
            raise refuse(name, value, "is not served here; leave it out")
        raise refuse(name, value, "is no field that is served here; leave it out, or ask POST /v1/jobs")
    for name, value in override.items():
        raise refuse(f"override_settings.{name}", value, "is not served here; sd_model_checkpoint alone is")
    for name, script in (body.alwayson_scripts or {}).items():
        args = script.get("args") if isinstance(script, dict) else script
        if args not in (None, [], [False], [None], {}):
            raise refuse("alwayson_scripts", name, "is not served here; leave it out")


def notes(body: Txt2Img, masked: bool) -> tuple[str, ...]:
    """What is done in another way than A1111 would."""
    found = []
    if masked and isinstance(body, Img2Img):
        if body.inpaint_full_res:
            found.append("inpaint_full_res: the whole picture was sampled, not the mask's surroundings alone")
        if body.inpainting_fill != 1:
            found.append("inpainting_fill: it began from the picture itself (1)")
    return tuple(found)


def sampler(name: str | None) -> str | None:
    return _named("sampler_name", name, A1111_SAMPLERS, "sampler")


def schedule(name: str | None) -> str | None:
    return _named("scheduler", name, A1111_SCHEDULES, "schedule")


def _named(field: str, name: str | None, theirs: dict[str, str], kind: str) -> str | None:
    """Our id of A1111's name, or of ours; the model's own where nothing is chosen."""
    if name is None or name.lower() in AUTOMATIC:
        return None
    known = {label.lower(): id for id, label in theirs.items()}
    known |= {label: entry.id for label, entry in by_name(kind).items()}
    if name.lower() not in known:
        place = "samplers" if kind == "sampler" else "schedulers"
        raise unknown(field, name, [*theirs.values(), *by_name(kind)], f"GET /sdapi/v1/{place} lists them")
    return known[name.lower()]


def labels(kind: str) -> list[tuple[str, str]]:
    """A1111's name, or ours, with our id: what may be chosen."""
    theirs = A1111_SAMPLERS if kind == "sampler" else A1111_SCHEDULES
    entries = {entry.id for entry in by_name(kind).values()}
    return sorted((theirs.get(id, id), id) for id in entries)


def model_name(title: Any) -> str:
    """`name [hash]`, as A1111 shows models, without the hash."""
    if not isinstance(title, str) or not title.strip():
        raise refuse("sd_model_checkpoint", title, "is no model; GET /sdapi/v1/sd-models lists them")
    return title.rpartition(" [")[0] if title.endswith("]") and " [" in title else title


def take_pictures(body: Img2Img, inputs: Inputs) -> dict[str, str]:
    """Ids of the picture and of its mask, blurred and turned as asked."""
    if len(body.init_images) != 1:
        raise refuse("init_images", f"{len(body.init_images)} pictures", "can't be used; send one")
    found = {"image": inputs.take_text(body.init_images[0], "init_images").id}
    if body.mask:
        data = inputs.decoded(body.mask, "mask")
        inputs.check(data, "mask")
        mask = Image.open(io.BytesIO(data)).convert("RGBA")
        flat = Image.new("RGBA", mask.size, (0, 0, 0, 255))
        grey = Image.alpha_composite(flat, mask).convert("L")
        grey = ImageOps.invert(grey) if body.inpainting_mask_invert else grey
        if body.mask_blur:
            grey = grey.filter(ImageFilter.GaussianBlur(body.mask_blur))
        target = io.BytesIO()
        grey.save(target, "PNG")
        found["mask"] = inputs.take(target.getvalue(), "mask").id
    return found


def told_info(request: GenerateRequest, seeds: list[int], texts: list[str], remarks: tuple[str, ...]) -> str:
    """A1111's `info`: JSON within JSON."""
    first = seeds[0] if seeds else -1
    return json.dumps(
        {
            "prompt": request.prompt,
            "all_prompts": [request.prompt] * len(seeds),
            "negative_prompt": request.negative,
            "all_negative_prompts": [request.negative] * len(seeds),
            "seed": first,
            "all_seeds": seeds,
            "subseed": first,
            "all_subseeds": seeds,
            "subseed_strength": 0,
            "width": request.width,
            "height": request.height,
            "cfg_scale": request.guidance,
            "steps": request.steps,
            "batch_size": request.batch,
            "sd_model_name": request.model,
            "index_of_first_image": 0,
            "infotexts": texts,
            "styles": [],
            "notes": list(remarks),
        },
        allow_nan=False,
    )


def share(step: int, steps: int) -> float:
    """How far a job is, 0 to 1, as A1111 tells it: never quite 1 while it runs."""
    return 0.01 if not steps else min(0.99, max(0.01, step / steps))


def left(seconds: float, done: float) -> float:
    """Seconds that remain at this pace."""
    return 0.0 if done <= 0 or not math.isfinite(seconds) else seconds * (1 - done) / done


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
