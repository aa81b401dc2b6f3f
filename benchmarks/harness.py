"""How every number here is measured: candidates in turn, round by round, on one machine; median and spread; JSON out.

Rounds are interleaved (A B, B A, A B ...), so that a slow minute of the machine hits all candidates alike, and ratios
are taken pair by pair within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
QUIET = 0.5
"""Load per core above which the machine counts as busy."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    what: str
    median: float
    low: float
    high: float
    unit: str
    n: int
    bar: str = ""
    """What it should be, as "<= 1.15"."""
    headline: bool = False
    """Shown in the README too."""

    def __str__(self) -> str:
        bar = f"  (bar {self.bar})" if self.bar else ""
        return (
            f"{self.what}: {self.median:.4g} {self.unit} [{self.low:.4g}..{self.high:.4g}, n={self.n}]{bar}"
        )


def row(what: str, values: Sequence[float], unit: str, *, bar: str = "", headline: bool = False) -> Row:
    """Median, least and greatest of the values."""
    return Row(what, statistics.median(values), min(values), max(values), unit, len(values), bar, headline)


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int = 7, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each candidate in each of `repeats` rounds, after `warmup` rounds that do not count."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be 1 or more and warmup 0 or more, got {repeats} and {warmup}")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-warmup, repeats):
        order = list(candidates) if turn % 2 == 0 else list(reversed(candidates))
        for name in order:
            taken = timed(candidates[name])
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def timed(run: Callable[[], object]) -> float:
    """Seconds, with what the GPU still has to do."""
    synchronize()
    began = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else "",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def write(
    name: str, title: str, rows: Sequence[Row], about: Mapping[str, Any], folder: Path = RESULTS
) -> Path:
    """benchmarks/results/<name>.json, from which `make docs` writes the tables."""
    found = {"title": title, "command": command(), "machine": dict(about), "rows": [asdict(r) for r in rows]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def command() -> str:
    """The command line, without the names of this machine's folders."""
    places = {"--folder": "FOLDER", "--table": "TABLE"}
    given = [places.get(before, word) for before, word in pairwise(["", *sys.argv[1:]])]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])


def effect(id: str, claim: str, measured: str, about: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """benchmarks/results/effects/<id>.json, from which the page of methods says what a technique does."""
    path = folder / "effects" / f"{id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"claim": claim, "measured": measured, "command": command(), "machine": dict(about)}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Options:
    """What the command line of a benchmark asks for."""

    model: str
    repeats: int
    steps: int
    device: str
    dry: bool

    @property
    def suffix(self) -> str:
        """Keeps the results of a GPU beside those of the CPU."""
        return "" if self.device == "cpu" else f"-{self.device.partition(':')[0]}"


def options(about: str) -> Options:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default="still-life", help="built-in model or folder (default still-life)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    given = parser.parse_args()
    return Options(given.model, given.repeats, given.steps, given.device, given.dry)


def finish(name: str, title: str, rows: Sequence[Row], about: Mapping[str, Any], given: Options) -> None:
    """Show the rows and keep them."""
    if about["load"] > QUIET * about["cores"]:
        print(f"the machine was busy (load {about['load']:.1f}): the spread will be wide", file=sys.stderr)
    for line in rows:
        print(line)
    if not given.dry:
        print(write(name + given.suffix, title, rows, about))
