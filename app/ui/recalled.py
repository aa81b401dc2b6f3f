"""Settings out of a picture or a finished job, as far as a form here can take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..builder import by_name
from ..faults import refuse
from ..jobs.store import Kept
from ..metadata import read_metadata
from ..server.desk import Desk

PLACES = ("picture", "pictures", "place")
OF_THE_RUN = ("device", "dtype", "batch")
"""Where it ran, not what it shows."""


class Recalled(NamedTuple):
    task: str
    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def from_file(path: Path, desk: Desk) -> Recalled:
    """What a dropped picture says, whoever made it."""
    found = read_metadata(path)
    if found is None:
        raise refuse(
            "file", path.name, "says nothing about how it was made; drop a picture with its metadata"
        )
    if found.record is not None:
        return from_record(found.record, desk)
    values = found.fields()
    notes = [f"made by {found.dialect}"]
    unmapped = values.pop("unmapped", {})
    values = {
        name: value for name, value in values.items() if name not in ("dialect", "model_hash", "record")
    }
    for name in ("sampler", "schedule"):
        if name in values and values[name] not in by_name(name):
            notes.append(f"there is no {name} {values.pop(name)!r} here")
    if unmapped:
        notes.append(f"not taken over: {', '.join(sorted(map(str, unmapped))[:12])}")
    task = "generate" if "generate" in desk.tasks else next(iter(desk.tasks))
    return Recalled(task, values, tuple(notes))


def from_kept(kept: Kept, desk: Desk) -> Recalled:
    """The settings of one result of a job."""
    if "request" in kept.record and "task" in kept.record:
        return from_record(kept.record, desk)
    job = desk.store.get(kept.job)
    return Recalled(job.task, of_task(job.task, desk.inputs.told(desk.store.request(kept.job)), desk))


def from_record(record: Mapping[str, Any], desk: Desk) -> Recalled:
    """Of one picture alone: its own seed, and one of it."""
    task, values, image = str(record.get("task")), record.get("request"), record.get("image")
    if task not in desk.tasks:
        raise refuse("task", task, f"is none of this sfumato; known are {', '.join(desk.tasks)}")
    if not isinstance(values, dict):
        raise refuse("file", "its record", "is damaged: it has no request")
    found = of_task(task, desk.inputs.told(values), desk)
    if isinstance(image, dict) and "seed" in found:
        found |= {"seed": image.get("seed", found["seed"])} | ({"count": 1} if "count" in found else {})
    notes = [str(note) for note in record.get("notes", ())]
    return Recalled(task, found, tuple(notes))


def of_task(task: str, values: Mapping[str, Any], desk: Desk) -> dict[str, Any]:
    """Known fields, without places of files that only the maker of the picture could name."""
    fields = desk.tasks[task].request.model_fields
    found = {}
    for name, value in values.items():
        if name not in fields or name in OF_THE_RUN:
            continue
        extra = fields[name].json_schema_extra
        holds = str(extra.get("holds", "")) if isinstance(extra, dict) else ""
        if holds in PLACES and "/" in str(value):
            continue
        found[name] = value
    return found
