"""`sfumato replay`: make an image again from its own metadata, and say whether it is the same."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from .console import Console
from .faults import DONE, FAILED, nearest, refuse
from .generation import Run, decoded, prepare, sample
from .local import LocalWork
from .metadata import SCHEMA, encoder, model_hash, open_image, read_metadata
from .output import FORMATS, check_output, image_paths, write_whole
from .requests import REQUESTS, GenerateRequest
from .settings import make_request
from .words import words_again, words_from


def replay_file(
    name: str, console: Console, *, output: str | None, check: bool, model: str | None = None
) -> int:
    """Exit code 0 if the pixels are the same, 1 if not. `model` is where the weights are now, if they moved."""
    path = Path(name).expanduser()
    record = read_record(path)
    check_output(output, make=not check)
    request, index = request_of(record, name)
    moved = request if model is None else request.model_copy(update={"model": model})
    told = words_from(record)
    run = prepare(moved, LocalWork(console), words_for=lambda full: words_again(full, index, told))
    run = replace(run, request=run.request.model_copy(update={"model": request.model}))
    differences = compare_records(record, run.record(index))
    for text in differences:
        console.say(text)
    image = remake(run, index, console)
    result = compare(path, image, run.record(index), differences)
    if not check:
        result["output"] = str(save(path, image, run.record(index), output))
    console.data(result, sentence(result))
    return DONE if result["same_pixels"] else FAILED


def read_record(path: Path) -> dict[str, Any]:
    """The sfumato record in an image. Another program's image can be looked at, not replayed."""
    found = read_metadata(path)
    if found is None:
        raise refuse("file", str(path), "says nothing about how it was made")
    if found.record is None:
        remedy = f"was made by {found.dialect}, not by sfumato; `sfumato inspect` shows what it says"
        raise refuse("file", str(path), remedy)
    schema = found.record.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise refuse("file", str(path), f"holds a record of no known schema ({str(schema)[:40]})")
    if schema > SCHEMA:
        raise refuse(
            "file",
            str(path),
            f"was made by a newer sfumato (record {schema}, known {SCHEMA}); update sfumato",
        )
    return found.record


def request_of(record: dict[str, Any], name: str) -> tuple[GenerateRequest, int]:
    """The request, and which of its images this is."""
    task = str(record.get("task"))
    if REQUESTS.get(task) is not GenerateRequest:
        raise refuse("task", task, f"can't be replayed; {nearest(task, REQUESTS)}known are generate")
    values, image = record.get("request"), record.get("image")
    index = image.get("index") if isinstance(image, dict) else None
    if not isinstance(values, dict) or not isinstance(index, int):
        raise refuse("file", name, "holds a damaged record: no request or no image index")
    request = make_request(GenerateRequest, values)
    if not 0 <= index < request.count:
        raise refuse("file", name, f"holds a damaged record: image {index} of {request.count}")
    return request, index


def remake(run: Run, index: int, console: Console) -> Image.Image:
    """The image, out of the batch it was sampled in."""
    first = index // run.request.batch * run.request.batch
    while first + run.alike(first) <= index:
        first += run.alike(first)
    with console.progress("sampling") as step:
        batch = sample(run, first, LocalWork(console, step=lambda done, _: step(*within(run, first, done))))
    return decoded(run, batch, index - first)


def within(run: Run, first: int, done: int) -> tuple[int, int]:
    """Steps done and in all, of one batch of a run."""
    steps = run.request.steps or 0
    return done - first * steps, steps


def compare_records(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is not as it was: versions, weights, machine."""
    found = []
    for part in ("versions", "machine"):
        before, now = old.get(part), new[part]
        before = before if isinstance(before, dict) else {}
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                found.append(f"{part.removesuffix('s')} of {key}: {before.get(key)} then, {now.get(key)} now")
    model = old.get("model")
    if not isinstance(model, dict) or model.get("hash") != model_hash(new["model"]):
        found.append("weights: not the same as then")
    together = old.get("together")
    if isinstance(together, int) and together > 1:
        found.append(
            f"batch: sampled with {together - 1} others then, by itself now, which may change the last bits"
        )
    for part in ("loras", "embeddings", "pictures"):
        if part in old and old[part] != new.get(part):
            found.append(f"{part}: not the same as then")
    return found


def compare(path: Path, image: Image.Image, record: dict[str, Any], differences: list[str]) -> dict[str, Any]:
    """Bytes first; if they differ, pixels as a reader of the file would see them."""
    then = open_image(path)
    buffer = io.BytesIO()
    encoder(image, kind_of(path, then), record)(buffer)
    now = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    most: int | None = None
    if then.size == now.size:
        bands = ImageChops.difference(then.convert("RGB"), now).split()
        most = max(int(np.asarray(band).max()) for band in bands)
    return {
        "file": str(path),
        "same_bytes": buffer.getvalue() == path.read_bytes(),
        "same_pixels": most == 0,
        "max_difference": most,
        "differences": differences,
    }


def kind_of(path: Path, image: Image.Image) -> str:
    """PNG, JPEG or WEBP, by the file's content."""
    if image.format not in FORMATS.values():
        raise refuse("file", str(path), f"is a {image.format}, which sfumato does not write")
    return str(image.format)


def save(original: Path, image: Image.Image, record: dict[str, Any], output: str | None) -> Path:
    """Under the given name, or in a new run folder in the original's format."""
    (path,) = image_paths(output, 1)
    if output is None:
        kind = kind_of(original, open_image(original))
        path = path.with_suffix(next(suffix for suffix, name in FORMATS.items() if name == kind))
    write_whole(path, encoder(image, FORMATS[path.suffix.lower()], record))
    return path


def sentence(result: dict[str, Any]) -> str:
    where = f"{result['output']}: " if "output" in result else ""
    if result["same_bytes"]:
        return f"{where}the same, byte for byte"
    if result["same_pixels"]:
        return f"{where}the same pixels; the files differ in their metadata"
    most = result["max_difference"]
    size = "another size" if most is None else f"pixels differ by up to {most} of 255"
    why = "" if result["differences"] else "; versions, weights and machine are the same"
    return f"{where}not the same: {size}{why}"
