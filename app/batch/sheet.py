"""The file of a batch: CSV, JSON lines or YAML, as rows of values. What they mean is settled in `rows.py`."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..faults import nearest, refuse
from ..options import plain_type
from ..requests import REQUESTS, Request
from ..settings import fields

MOST_ROWS = 100_000
KEYS = ("defaults", "rows", "matrix")
TASK = "task"


class Entry(NamedTuple):
    number: int
    """1 is the first row."""
    values: dict[str, Any]


def read_sheet(name: str) -> list[Entry]:
    """The rows of a file, in its order; empty lines and cells are as if they were not there."""
    path = Path(name).expanduser()
    readers = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".yaml": _yaml, ".yml": _yaml}
    if path.suffix.lower() not in readers:
        raise refuse("file", name, "has no known ending; give a .csv, .jsonl or .yaml file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse("file", name, "is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise refuse("file", name, f"can't be read ({error.strerror})") from error
    found = []
    for number, values in enumerate(readers[path.suffix.lower()](text, name), 1):
        if number > MOST_ROWS:
            raise refuse("file", name, f"has more than {MOST_ROWS} rows; split it")
        found.append(Entry(number, values))
    if not found:
        raise refuse("file", name, "has no rows")
    return found


def known_columns() -> list[str]:
    return [TASK, *dict.fromkeys(column for request in REQUESTS.values() for column in fields(request))]


def _csv(text: str, name: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = [cell.strip() for cell in next(reader, [])]
        for column in head:
            if column not in known_columns():
                near = nearest(column, known_columns())
                raise refuse("column", column, f"is no field of a request; {near}`sfumato schema` lists them")
            if head.count(column) > 1:
                raise refuse("column", column, "is there twice; keep one")
        for cells in reader:
            if len(cells) > len(head):
                remedy = f"has {len(cells)} cells for {len(head)} columns; put texts with commas in quotes"
                raise refuse("line", reader.line_num, remedy)
            given = {column: cell for column, cell in zip(head, cells, strict=False) if cell.strip()}
            if given:
                yield {column: _cell(column, cell) for column, cell in given.items()}
    except csv.Error as error:
        raise refuse("file", name, f"is no valid CSV (line {reader.line_num}: {error})") from error


def _cell(column: str, text: str) -> Any:
    """Several values in one cell are separated by `;`, or are a JSON list."""
    info = next((r.model_fields[column] for r in REQUESTS.values() if column in r.model_fields), None)
    if info is None or not plain_type(info.annotation)[1]:
        return text
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise refuse(column, text, "is no JSON list") from error
    return [part.strip() for part in text.split(";") if part.strip()]


def _jsonl(text: str, name: str) -> Iterator[dict[str, Any]]:
    for line, one in enumerate(text.splitlines(), 1):
        if not one.strip():
            continue
        try:
            found = json.loads(one)
        except (ValueError, RecursionError) as error:
            raise refuse("line", line, f"of {name} is no valid JSON ({str(error)[:80]})") from error
        yield _table(found, f"line {line}", name)


def _yaml(text: str, name: str) -> Iterator[dict[str, Any]]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise refuse("file", name, f"is no valid YAML ({' '.join(str(error).split())[:120]})") from error
    if isinstance(found, list):
        found = {"rows": found}
    if not isinstance(found, dict):
        raise refuse("file", name, "must hold a list of rows, or a table with defaults, rows, matrix")
    for key in found:
        if key not in KEYS:
            remedy = f"is not known; {nearest(str(key), KEYS)}known are {', '.join(KEYS)}"
            raise refuse("key", str(key), remedy)
    defaults = _table(found.get("defaults") or {}, "defaults", name)
    rows = found.get("rows") or [{}]
    if not isinstance(rows, list):
        raise refuse("rows", rows, "must be a list of tables")
    if not found.get("rows") and not found.get("matrix"):
        return
    sweeps = list(_sweeps(found.get("matrix") or {}, len(rows)))
    for at, row in enumerate(rows, 1):
        for sweep in sweeps:
            yield {**defaults, **sweep, **_table(row, f"row {at}", name)}


def _sweeps(matrix: Any, rows: int) -> Iterator[dict[str, Any]]:
    """Every combination of the lists' values; the last list varies fastest."""
    if not isinstance(matrix, dict):
        raise refuse("matrix", matrix, "must be a table of lists, as in {seed: [1, 2], steps: [10, 20]}")
    count = rows
    for name, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise refuse("matrix", f"{name}: {values}", "must be a list with a value or more")
        count *= len(values)
    if count > MOST_ROWS:
        raise refuse("matrix", ", ".join(matrix), f"makes {count} rows, {MOST_ROWS} are allowed; split it")
    for values in itertools.product(*matrix.values()):
        yield dict(zip(map(str, matrix), values, strict=True))


def _table(found: Any, where: str, name: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise refuse(where, found, f"of {name} must be a table of a request's fields, as prompt and seed")
    return {str(key): value for key, value in found.items()}


def task_of(values: Mapping[str, Any]) -> type[Request]:
    """What a row asks for; a picture unless it says otherwise."""
    task = str(values.get(TASK) or "generate").strip()
    if task not in REQUESTS:
        raise refuse(TASK, task, f"is no task; {nearest(task, REQUESTS)}known are {', '.join(REQUESTS)}")
    return REQUESTS[task]
