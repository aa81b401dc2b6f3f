"""A toy task that is nothing but a request and a function: it adds up numbers, and resumes."""

from __future__ import annotations

import json
from typing import ClassVar

from sfumato.app.requests import Request, field
from sfumato.app.tasks import Task
from sfumato.app.work import Artifact, Outcome, Work
from sfumato.pipelines.stopping import Stopped, poll


class SumRequest(Request):
    """Add up the numbers of a generator."""

    task: ClassVar[str] = "sum"

    prompt: str = field("", "what to call it", flags=("-p",))
    steps: int = field(5, "numbers to add", ge=1, le=10**9)
    seed: int | None = field(None, "where the generator begins; random if not given", ge=0, le=2**32)
    device: str = field("auto", "auto, cpu or cuda")


def add_up(request: SumRequest, work: Work) -> Outcome:
    work.phase("load")
    state = {"step": 0, "sum": request.seed}
    if (file := work.saved()) is not None:
        state = json.loads(file.read_text())
    work.phase("encode")
    poll()
    work.phase("sample")
    while state["step"] < request.steps:
        if work.cancelled():
            raise Stopped
        state = {"step": state["step"] + 1, "sum": (state["sum"] * 1103515245 + 12345) % 2**31}
        now = dict(state)
        work.checkpoint(lambda path, now=now: path.write_text(json.dumps(now)), now["step"], request.steps)
        work.progress(state["step"], request.steps)
    for i, phase in enumerate(("decode", "write")):
        if f"{phase}.txt" in work.kept():
            continue
        work.phase(phase)
        record = {"request": request.model_dump(mode="json")}
        text = f"{state['sum'] + i}\n".encode()
        work.keep(
            Artifact(f"{phase}.txt", "text/plain", record), lambda stream, text=text: stream.write(text)
        )
    return Outcome(request)


SUM = Task(SumRequest, add_up)
