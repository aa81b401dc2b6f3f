"""Rows as requests: checked, each with a seed and a name that stay the same however often the batch is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...pipelines.errors import BadInput, SfumatoError
from ..faults import refuse
from ..registry import located
from ..requests import FOR_RANDOM, Request
from ..settings import make_request, merged
from .sheet import TASK, Entry, task_of

MOST_TOLD = 50
"""Bad rows that are told of one by one."""


class Row(NamedTuple):
    number: int
    request: Request
    id: str
    """Of its request: the same for the same, whatever else is in the file."""

    @property
    def stem(self) -> str:
        """What its files are called."""
        return f"{self.number:04d}-{self.id[:8]}"

    @property
    def images(self) -> int:
        """Pictures that can be made apart from each other."""
        return int(dict(self.request).get("count", 1)) if self.request.task == "generate" else 1


class Bad(NamedTuple):
    number: int
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(f"row {self.number}: {sentence}" for sentence in self.sentences)


class Sheet(NamedTuple):
    """A file's rows, sorted out."""

    rows: tuple[Row, ...]
    bad: tuple[Bad, ...]
    twice: int
    """Rows that ask for what another one asks for already."""


def rows_of(entries: Iterable[Entry], config: Path | None) -> Sheet:
    """The environment and the config file hold for rows as they do for commands."""
    rows: dict[str, Row] = {}
    bad, twice, repeats = [], 0, dict[str, int]()
    given: dict[type[Request], dict[str, Any]] = {}
    for entry in entries:
        try:
            kind = task_of(entry.values)
            if kind not in given:
                given[kind] = merged(kind, {}, config)
            row = Row(entry.number, _request(kind, entry.values, given[kind], config, repeats), "")
        except SfumatoError as error:
            bad.append(Bad(entry.number, tuple(str(error).splitlines())))
            continue
        row = row._replace(id=request_id(row.request))
        twice += row.id in rows
        rows.setdefault(row.id, row)
    return Sheet(tuple(rows.values()), tuple(bad), twice)


def _request(
    kind: type[Request],
    values: Mapping[str, Any],
    others: Mapping[str, Any],
    config: Path | None,
    repeats: dict[str, int],
) -> Request:
    try:
        own = kind.expand({k: v for k, v in values.items() if k != TASK and v is not None})
    except ValueError as error:
        raise BadInput("size", str(error)) from error
    found = located({**others, **own}, config)
    if kind.spoken and kind.positional not in found:
        raise refuse(kind.positional, None, "is needed; fill it in, or give an empty text in quotes as JSON")
    request = make_request(kind, found)
    if dict(request).get("seed", 0) is not None:
        return request
    content = canonical(request)
    repeats[content] = repeats.get(content, 0) + 1
    return request.model_copy(update={"seed": seed_of(content, repeats[content])})


def seed_of(content: str, repeat: int) -> int:
    """For a row without one: drawn from what it asks for, so that the next run of the file asks for the same."""
    return int(hashlib.sha256(f"{content} {repeat}".encode()).hexdigest(), 16) % FOR_RANDOM


def canonical(request: Request) -> str:
    return json.dumps([request.task, request.model_dump(mode="json")], sort_keys=True)


def request_id(request: Request) -> str:
    return hashlib.sha256(canonical(request).encode()).hexdigest()


def told_bad(bad: Iterable[Bad]) -> str:
    """One sentence per fault."""
    lines = [line for one in sorted(bad) for line in str(one).splitlines()]
    rest = len(lines) - MOST_TOLD
    return "\n".join([*lines[:MOST_TOLD], *([f"and {rest} more"] if rest > 0 else [])])
