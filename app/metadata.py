"""What is written into every picture, and how it is read back.

PNG: text chunk `parameters` in A1111's dialect, and our own JSON under `sfumato`. JPEG and WebP: one EXIF
UserComment with A1111's text, whose last value `Sfumato` is our JSON. The record holds nothing that differs
between two runs of the same request on the same machine: no dates, no timings. So replaying it gives the same
bytes; timings go to stdout and to the sidecar file (`--sidecar`).

Record, schema 1: {schema, task, request (nothing left open, prompts as they were given), image {index, seed},
used {sampler, schedule}, versions, machine {device, name, threads}, model {..., hash}, notes, resolved {prompt,
negative} (as they were encoded), tagged (the prompt with its choices made and its LoRA tags), loras [{name, weight,
hash}]}, and embeddings {word: hash} if there are any.
"""

from __future__ import annotations

import hashlib
import html
import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from .dialects import OWN, OWN_IN_A1111, recover, write_a1111
from .faults import refuse
from .output import FORMATS, write_whole
from .recovered import MAX_TEXT, BrokenMetadata, Recovered
from .requests import SamplingRequest
from .words import Words

SCHEMA = 1
PACKAGES = ("sfumato", "torch", "diffusers", "transformers", "peft", "pillow", "numpy")
JPEG_LIMIT = 60_000
"""Bytes of EXIF that fit into a JPEG, with room for the headers."""

USER_COMMENT = 0x9286
UNICODE = b"UNICODE\0"
QUALITY = 95

A1111_SAMPLERS = {
    "ddim": "DDIM",
    "euler-ancestral": "Euler a",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "heun": "Heun",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}
A1111_SCHEDULES = {
    "karras": "Karras",
    "uniform": "Uniform",
    "exponential": "Exponential",
    "sgm-uniform": "SGM Uniform",
    "ays": "Align Your Steps",
}
"""Names that A1111 uses; others stand under our ids."""


@cache
def versions() -> dict[str, str]:
    """Versions of what takes part in making a picture, from the installed packages' own records."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def make_record(
    request: SamplingRequest,
    index: int,
    model: Mapping[str, Any],
    *,
    used: Mapping[str, str],
    machine: Mapping[str, Any],
    notes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The record of image `index` of a resolved request. `used` names the sampler and schedule that ran."""
    return {
        "schema": SCHEMA,
        "task": request.task,
        "request": request.model_dump(mode="json"),
        "image": {"index": index, "seed": (request.seed or 0) + index},
        "used": dict(used),
        "versions": versions(),
        "machine": dict(machine),
        "model": {**model, "hash": model_hash(model)},
        "notes": list(notes),
    }


def model_hash(model: Mapping[str, Any]) -> str:
    """One hash over the tensor hashes of a model's parts: edits of file headers leave it alone."""
    return hashlib.sha256(json.dumps(model.get("hashes", {}), sort_keys=True).encode()).hexdigest()


def parameters(record: Mapping[str, Any], *, own: bool = False) -> str:
    """A1111's text of a record; with `own` the record itself is its last value."""
    request, model = record["request"], record["model"]
    sampler, schedule = record["used"]["sampler"], record["used"]["schedule"]
    settings = {
        "Steps": request["steps"],
        "Sampler": A1111_SAMPLERS.get(sampler, sampler),
        "Schedule type": A1111_SCHEDULES.get(schedule, schedule),
        "CFG scale": f"{request['guidance']:g}",
        "Seed": record["image"]["seed"],
        "Size": f"{request['width']}x{request['height']}",
        "Model hash": model["hash"][:10],
        "Model": model.get("name", request["model"]),
        "Lora hashes": ", ".join(f"{row['name']}: {row['hash'][:12]}" for row in record.get("loras", []))
        or None,
        "RNG": "CPU",
        "Version": f"sfumato {record['versions']['sfumato']}",
        OWN_IN_A1111: compact(record) if own else None,
    }
    negative = record["resolved"]["negative"] if "resolved" in record else request["negative"]
    return write_a1111(record.get("tagged", request["prompt"]), negative, settings)


def compact(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))


def check_metadata_fits(path: Path, request: SamplingRequest, words: Iterable[Words]) -> None:
    """A JPEG holds 64 KB of metadata: a longer prompt is refused before any work is done."""
    if FORMATS[path.suffix.lower()] != "JPEG":
        return
    longest = max(3 * len(one.tagged) + 2 * len(one.negative) for one in set(words))
    needed = 2 * (len(request.prompt) + len(request.negative) + longest) + 8000
    if needed > JPEG_LIMIT:
        remedy = f"needs about {needed} bytes of metadata, a JPEG holds {JPEG_LIMIT}; write .png or .webp"
        raise refuse("prompt", request.prompt, remedy)


def save_image(path: Path, image: Image.Image, record: Mapping[str, Any]) -> None:
    """The picture with its record, whole or not at all."""
    write_whole(path, encoder(image, FORMATS[path.suffix.lower()], record))


def encoder(image: Image.Image, kind: str, record: Mapping[str, Any]) -> Callable[[BinaryIO], None]:
    """Writes `image` as "PNG", "JPEG" or "WEBP" into an open file."""
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", parameters(record))
        info.add_text(OWN, compact(record))
        return lambda file: image.save(file, "PNG", pnginfo=info)
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[USER_COMMENT] = UNICODE + parameters(record, own=True).encode("utf-16-be")
    data = exif.tobytes()
    if kind == "JPEG":
        return lambda file: image.save(file, "JPEG", quality=QUALITY, subsampling=0, exif=data)
    return lambda file: image.save(file, "WEBP", quality=QUALITY, exif=data)


def open_image(path: Path, field: str = "file") -> Image.Image:
    """An image file, decoded. A missing, broken, cut-off or bomb-sized one is refused in one sentence."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise refuse(field, str(path), "does not exist") from error
    except UnidentifiedImageError as error:
        raise refuse(field, str(path), "is not an image, or a broken one") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise refuse(field, str(path), f"is a broken image ({str(error)[:120]})") from error


def read_metadata(path: Path) -> Recovered | None:
    """What a picture says about how it was made; None if it says nothing."""
    try:
        return recover(read_texts(open_image(path)))
    except BrokenMetadata as error:
        raise refuse("file", str(path), f"holds broken metadata: {error}") from error


def read_texts(image: Image.Image) -> dict[str, str]:
    """Text by key: PNG chunks, EXIF UserComment and ComfyUI's EXIF tags, sd.cpp's XMP."""
    texts = {str(k): v for k, v in image.info.items() if isinstance(v, str) and len(v) <= MAX_TEXT}
    exif = image.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(USER_COMMENT)
    if isinstance(comment, bytes) and "parameters" not in texts:
        texts["parameters"] = user_comment(comment[: 2 * MAX_TEXT])
    for tag in (ExifTags.Base.Make, ExifTags.Base.Model):
        name, colon, value = str(exif.get(tag, "")).partition(":")
        if colon and name in ("prompt", "workflow"):
            texts.setdefault(name, value)
    xmp = image.info.get("xmp")
    if isinstance(xmp, bytes):
        match = re.search(rb'sdcpp:parameters(?:="([^"]*)"|>([^<]*)<)', xmp[:MAX_TEXT])
        if match:
            found = match[1] if match[1] is not None else match[2]
            texts.setdefault("parameters", html.unescape(found.decode("utf-8", "replace")))
    return texts


def user_comment(data: bytes) -> str:
    """EXIF UserComment: eight bytes name the encoding. UTF-16 in the byte order that gives text."""
    code, body = data[:8], data[8:]
    if code == UNICODE:
        little = body[1::2].count(0) > body[::2].count(0)  # ASCII letters have their zero byte second
        return body.decode("utf-16-le" if little else "utf-16-be", "replace")
    return body.decode("utf-8", "replace").strip("\0")
