"""Jobs: listing a long queue, and what the way through the store adds before the first preview is there.

- *list*: 10,000 waiting jobs, read and made into values.
- *to the first preview*: from before `submit` until another process sees the preview, a runner waiting with the model
  open; beside it the bare pipeline, from its call to the end of its first step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from harness import Options, Row, finish, machine, options, row, timed
from sfumato.app.jobs import control
from sfumato.app.jobs.store import COMPLETED, Store
from sfumato.app.requests import GenerateRequest
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.loop import Cancelled, Control, Event
from sfumato.pipelines.text_to_image import TextToImage

PROMPT = "a large green cube, in snow"
MANY = 10_000


def long_queue(folder: Path, repeats: int) -> list[Row]:
    store = Store(folder)
    many = [GenerateRequest(prompt=f"{PROMPT} {i}") for i in range(MANY)]
    submitted = timed(lambda: store.submit_all(many))
    listed = [timed(store.queue) for _ in range(repeats)]
    found = [timed(lambda: store.history([f"snow {MANY // 2}"])) for _ in range(repeats)]
    return [
        row(f"list {MANY:,} waiting jobs", [1000 * s for s in listed], "ms", bar="<= 100", headline=True),
        row(f"search {MANY:,} jobs", [1000 * s for s in found], "ms"),
        row(f"submit {MANY:,} jobs in one transaction", [submitted], "s"),
    ]


def bare(make: TextToImage, given: Options) -> float:
    """Seconds to the end of the first step."""
    reached: list[float] = []

    def on_step(event: Event) -> None:
        reached.append(time.perf_counter())

    began = time.perf_counter()
    control = Control(on_step=on_step, cancelled=lambda: bool(reached))
    with suppress(Cancelled):
        make(PROMPT, seed=1, steps=given.steps, control=control)
    return reached[0] - began


def first_preview(store: Store, request: GenerateRequest) -> float:
    """Seconds until a client sees it; the rest of the job is cancelled."""
    began = time.perf_counter()
    id = store.submit(request)
    while not store.get(id).previews:
        time.sleep(0.001)
    seen = time.perf_counter() - began
    control.cancel(store, id)
    while store.get(id).finished is None:
        time.sleep(0.001)
    return seen


def through_the_store(folder: Path, given: Options) -> list[Row]:
    model = open_model(given.model, device=given.device, dtype=torch.float32)
    make = TextToImage(model)
    request = GenerateRequest(
        prompt=PROMPT, seed=1, steps=given.steps, model=given.model, device=given.device, dtype="float32"
    )
    command = [sys.executable, "-m", "sfumato.app", "jobs", "run", "--alone", "--forever", "--quiet"]
    command += ["--device", given.device]
    with subprocess.Popen(
        command, env={**os.environ, "SFUMATO_HOME": str(folder)}, stdout=subprocess.DEVNULL
    ) as runner:
        try:
            store = Store(folder)
            warm = store.submit(request.model_copy(update={"steps": 2}))
            while store.get(warm).state != COMPLETED:
                time.sleep(0.05)
            bare(make, given)
            pairs = [(first_preview(store, request), bare(make, given)) for _ in range(given.repeats)]
        finally:
            runner.terminate()
    return [
        row(
            "to the first preview, beyond the bare pipeline",
            [1000 * (job - alone) for job, alone in pairs],
            "ms",
            bar="<= 50",
            headline=True,
        ),
        row("to the first preview, as a job", [1000 * job for job, _ in pairs], "ms"),
        row("to the end of the first step, bare", [1000 * alone for _, alone in pairs], "ms"),
    ]


def main() -> None:
    given = options((__doc__ or "").partition("\n")[0])
    about = machine(given.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = long_queue(Path(folder, "many"), given.repeats)
        rows += through_the_store(Path(folder, "warm"), given)
    finish("jobs", "Jobs", rows, about, given)


if __name__ == "__main__":
    main()
