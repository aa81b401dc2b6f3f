"""X/Y/Z grids: one request, up to three of its fields varied, a job for each cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ...pipelines.errors import SfumatoError
from ..faults import refuse
from ..jobs.store import COMPLETED, Job
from ..requests import Request
from ..server.desk import Desk
from ..settings import make_request
from .cards import empty, media, results
from .kinds import fields_of

MOST = 100
REPLACE = " (replace words)"
"""An axis that replaces its first value in a text by each of its values."""


class Axis(NamedTuple):
    field: str
    values: tuple[str, ...]

    def put(self, values: Mapping[str, Any], value: str) -> dict[str, Any]:
        name = self.field.removesuffix(REPLACE)
        if self.field.endswith(REPLACE):
            return {**values, name: str(values.get(name, "")).replace(self.values[0], value)}
        return {**values, name: [value] if isinstance(values.get(name), list) else value}


def axis_choices(request: type[Request]) -> list[str]:
    """Fields that an axis can vary: all that a line of text can say."""
    names = []
    for one in fields_of(request):
        if one.kind in ("picture", "mask", "pictures"):
            continue
        names += [one.name, one.name + REPLACE] if one.kind == "words" else [one.name]
    return names


def axis_of(field: str | None, text: str) -> Axis | None:
    """Values are parted by new lines or semicolons if there are any, else by commas."""
    if not field or not text.strip():
        return None
    mark = ";" if ";" in text else "," if "\n" not in text.strip() else "\n"
    values = tuple(part.strip() for part in text.replace("\n", mark).split(mark) if part.strip())
    return Axis(field, values)


def requests(kind: type[Request], values: Mapping[str, Any], axes: Sequence[Axis]) -> Iterator[Request]:
    """A request for each cell, the last axis the slowest; the seed is the same unless an axis says otherwise."""
    count = 1
    for axis in axes:
        count *= len(axis.values)
        name = axis.field.removesuffix(REPLACE)
        if axis.field.endswith(REPLACE) and axis.values[0] not in str(values.get(name, "")):
            raise refuse(name, axis.values[0], f"is not in the {name}; the first value is what is replaced")
    if not axes:
        raise refuse("x", None, "needs a field and its values; choose at least one axis")
    if count > MOST:
        raise refuse("grid", count, f"cells are more than {MOST}; give fewer values")
    for cell in cells(axes):
        found = dict(values)
        for axis, value in zip(axes, cell, strict=True):
            found = axis.put(found, value)
        yield make_request(kind, found)


def cells(axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    """Values of each cell, in the order of the jobs: x runs fastest."""
    return [tuple(reversed(cell)) for cell in itertools.product(*(axis.values for axis in reversed(axes)))]


def grid(desk: Desk, held: Mapping[str, Any] | None) -> Markup:
    """The tables as far as their jobs are; `held` is what the browser remembers."""
    if not held or not held.get("jobs"):
        return empty(
            "No grid yet", "Choose a task, and the values along X, Y and Z; its form gives all others."
        )
    axes = [Axis(str(name), tuple(map(str, values))) for name, values in held["axes"]]
    names, jobs = cells(axes), list(held["jobs"])
    by_cell = dict(zip(names, jobs, strict=False))
    x, y, z = [*axes, *[Axis("", ("",))] * 3][:3]
    tables = []
    for c in z.values:
        head = Markup("").join(Markup('<th scope="col">{}</th>').format(_told(x, a)) for a in x.values)
        rows = []
        for b in y.values:
            inner = Markup("").join(_cell(desk, by_cell.get((a, b, c)[: len(axes)])) for a in x.values)
            rows.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(_told(y, b), inner))
        caption = Markup("<caption>{}</caption>").format(_told(z, c)) if z.field else Markup("")
        table = Markup(
            '<table class="sf-grid">{}<thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table>'
        )
        tables.append(table.format(caption, head, Markup("").join(rows)))
    return Markup('<div class="sf-scroll" tabindex="0">{}</div>').format(Markup("").join(tables))


def _told(axis: Axis, value: str) -> str:
    return f"{axis.field.removesuffix(REPLACE)}: {value}" if axis.field else ""


def _cell(desk: Desk, id: object) -> Markup:
    job = _job(desk, id)
    if job is None:
        return Markup('<td class="sf-small">gone</td>')
    if job.state == COMPLETED:
        kept = next((one for one in results(desk.store, job.id)), None)
        return Markup("<td>{}</td>").format("" if kept is None else media(kept, job.summary))
    told = (
        f"{job.state} {job.step}/{job.steps}"
        if job.state == "running" and job.steps
        else job.error or job.state
    )
    return Markup('<td class="sf-small" data-state="{}">{}</td>').format(job.state, told)


def _job(desk: Desk, id: object) -> Job | None:
    try:
        return desk.store.get(id) if isinstance(id, int) else None
    except SfumatoError:
        return None
