"""A request in the words of the other entrances: as a command line, as Python, as the JSON of the API."""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Iterator
from typing import Any

from ..chosen import LoraChoice, Technique
from ..requests import Request


def given(request: Request) -> dict[str, Any]:
    """Only what differs from the defaults."""
    fields = type(request).model_fields
    return {name: value for name, value in dict(request).items() if value != fields[name].default}


def as_command(request: Request) -> str:
    """What makes the same in a terminal."""
    values = given(request)
    words = ["sfumato", request.task]
    if request.positional in values or request.spoken:
        words += ["--", str(values.pop(request.positional, ""))]
    options = [word for name, value in values.items() for word in _options(name, value)]
    return shlex.join([*words[:2], *options, *words[2:]])


def _options(name: str, value: Any) -> Iterator[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        yield flag if value else f"--no-{flag[2:]}"
        return
    for one in value if isinstance(value, tuple) else (value,):
        yield f"{flag}={_text(one)}"


def _text(value: Any) -> str:
    if isinstance(value, LoraChoice):
        return f"{value.name}:{value.weight:g}"
    return str(value)


def as_python(request: Request) -> str:
    """A program that queues the request, runs it, and says where its results are."""
    lines = []
    for name, value in given(request).items():
        plain = tuple(_text(one) for one in value) if isinstance(value, tuple) else value
        plain = str(plain) if isinstance(plain, Technique | LoraChoice) else plain
        lines.append(f"    {name}={pprint.pformat(plain, width=90, indent=4)},")
    name, module = type(request).__name__, type(request).__module__
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "from sfumato.app.jobs.artifacts import artifact_path",
            "from sfumato.app.jobs.runner import Runner",
            "from sfumato.app.jobs.store import Store",
            f"from {module} import {name}",
            "",
            f"request = {name}(",
            *lines,
            ")",
            'store = Store(Path("my-jobs"))',
            "job = store.submit(request)",
            "Runner(store).run()",
            "for kept in store.artifacts(job):",
            "    print(kept.name, artifact_path(store.home, kept.hash, kept.suffix))",
        ]
    )


def as_json(request: Request) -> str:
    """The body of `POST /v1/jobs`."""
    values = request.model_dump(mode="json", include=set(given(request)))
    return json.dumps({"task": request.task, "request": values}, indent=2, ensure_ascii=False)
