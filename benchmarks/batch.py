"""Batches: a file of rows by `sfumato batch run`, beside the same rows one by one.

- *one call per picture*: `sfumato generate` as a process of its own, for a few of the rows.
- *one by one*: the Python pipeline, once per row in one process with the model open; it writes plain PNG files.
- *batch*: the engine of `sfumato batch run` in the same process, model open; files, records and manifest included.
- *on Ray*: `sfumato batch run --engine ray --cpus 1`, a process of its own with a worker per processor, start included;
  beside it `sfumato batch run` as a process. Left out with --no-ray.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import Options, Row, finish, interleave, machine, ratios, row, timed
from sfumato.app.batch.local_engine import LocalEngine
from sfumato.app.batch.running import run_batch
from sfumato.app.batch.sheet import read_sheet
from sfumato.app.batch.wish import Wish
from sfumato.app.batch.worker import Worker
from sfumato.app.console import Console
from sfumato.pipelines.text_to_image import TextToImage

COLOURS = ("red", "blue", "green", "yellow", "purple")
SHAPES = ("cube", "sphere", "cone", "mug")
CALLS = 3
"""Single processes per round."""


def rows(count: int, model: str, steps: int) -> list[dict[str, object]]:
    """Twenty prompts, each under several seeds."""
    prompts = [f"a {colour} {shape}, in snow" for colour in COLOURS for shape in SHAPES]
    return [
        {"prompt": prompts[at % len(prompts)], "seed": at, "model": model, "steps": steps}
        for at in range(count)
    ]


class Bench:
    """Each call works in a folder of its own, so that nothing is there already."""

    def __init__(self, folder: Path, given: Options, count: int) -> None:
        self.folder, self.count, self.calls = folder, count, 0
        self.rows = rows(count, given.model, given.steps)
        self.file = folder / "rows.jsonl"
        self.file.write_text("\n".join(map(json.dumps, self.rows)), encoding="utf-8")
        self.engine = LocalEngine(Worker())

    def fresh(self) -> Path:
        self.calls += 1
        return self.folder / str(self.calls)

    def one_by_one(self) -> None:
        model, folder = self.engine.worker.shelf.model, self.fresh()
        assert model is not None
        folder.mkdir()
        pipe = TextToImage(model)
        for at, asked in enumerate(self.rows):
            made = pipe(str(asked["prompt"]), seed=int(str(asked["seed"])), steps=int(str(asked["steps"])))
            made.images[0].save(folder / f"{at}.png")

    def batch(self, per_batch: int = 0) -> None:
        wish = Wish(file=str(self.file), output=str(self.fresh()), per_batch=per_batch)
        with open(os.devnull, "w") as nowhere:
            code = run_batch(wish, read_sheet(wish.file), self.engine, Console(quiet=True, out=nowhere))
        assert code == 0

    def command(self, *words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "sfumato.app", *words, "--quiet"], check=True, stdout=subprocess.DEVNULL
        )

    def call(self, at: int) -> None:
        asked = self.rows[at]
        options = [word for name in ("seed", "model", "steps") for word in (f"--{name}", str(asked[name]))]
        self.command("generate", str(asked["prompt"]), *options, "-o", f"{self.fresh()}/")

    def batch_command(self, *more: str) -> None:
        self.command("batch", "run", str(self.file), "-o", str(self.fresh()), *more)


def measured(bench: Bench, given: Options, *, ray: bool) -> list[Row]:
    bench.batch()  # opens the model
    inside: dict[str, Callable[[], object]] = {"one": bench.one_by_one, "batch": bench.batch}
    inside["single"] = lambda: bench.batch(1)
    seconds = interleave(inside, repeats=given.repeats, warmup=0)
    calls = [timed(lambda at=at: bench.call(at)) for _ in range(given.repeats) for at in range(CALLS)]
    outside: dict[str, Callable[[], object]] = {"process": bench.batch_command}
    if ray:
        outside["ray"] = lambda: bench.batch_command("--engine", "ray", "--cpus", "1")
    seconds |= interleave(outside, repeats=given.repeats, warmup=0)
    each = {name: [1000 * taken / bench.count for taken in found] for name, found in seconds.items()}
    call = statistics.median(calls)
    found = [
        row("one call of `sfumato generate` per picture", [1000 * taken for taken in calls], "ms/picture"),
        row(f"the pipeline, {bench.count} pictures one by one", each["one"], "ms/picture"),
        row(f"a batch of {bench.count} rows", each["batch"], "ms/picture", headline=True),
        row(f"a batch of {bench.count} rows, --per-batch 1", each["single"], "ms/picture"),
        row(f"`sfumato batch run`, {bench.count} rows", each["process"], "ms/picture"),
        row(
            "`sfumato batch run` against one call per picture",
            [1000 * call / taken for taken in each["process"]],
            "times",
            bar=">= 1.5",
            headline=True,
        ),
        row(
            "a batch against one by one in a process",
            ratios(each["one"], each["batch"]),
            "times",
            bar=">= 1.5",
            headline=True,
        ),
    ]
    if ray:
        found.append(row("on Ray, a worker per processor", each["ray"], "ms/picture"))
        found.append(row("on Ray against `sfumato batch run`", ratios(each["process"], each["ray"]), "times"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="still-life", help="built-in model or folder (default still-life)")
    parser.add_argument("--rows", type=int, default=200, help="pictures of the batch (default 200)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count (default 3)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--no-ray", action="store_true", help="leave out the candidate on Ray")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    asked = parser.parse_args()
    given = Options(asked.model, asked.repeats, asked.steps, "cpu", asked.dry)
    os.environ.pop("SFUMATO_OUTPUT", None)
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Bench(Path(folder), given, asked.rows), given, ray=not asked.no_ray)
    finish("batch", "Batches", found, about, given)


if __name__ == "__main__":
    main()
