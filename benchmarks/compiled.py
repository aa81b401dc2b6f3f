"""Seconds to the first answer of a network in a fresh process, and for each later one: plain, compiled, compiled ahead.

`cold` is inductor with an empty cache, `warm` the same with what an earlier process left on the disk, `ahead` what
`sfumato models compile` made. Opening the model counts, imports of torch and diffusers do not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import harness
import torch
from sfumato.app.compile_command import called
from sfumato.pipelines.converts._ahead import Store
from sfumato.pipelines.converts.compile import Compile
from sfumato.pipelines.loading import open_model

CALLS = 7


def once(how: str, name: str, folder: Path) -> dict[str, float]:
    """One process: seconds to open the model, to the first answer after that, and of later calls."""
    began = time.perf_counter()
    model = open_model(name)
    size = (model.defaults.width, model.defaults.height)
    opened = time.perf_counter()
    if how == "ahead":
        Compile("ahead", store=Store(folder / "ahead"))(model.denoise.net)
    elif how != "plain":
        Compile()(model.denoise.net)
    with torch.no_grad():
        called(model, size, 2)
        first = time.perf_counter()
        later = []
        for _ in range(CALLS):
            start = time.perf_counter()
            called(model, size, 2)
            later.append(time.perf_counter() - start)
    return {"open": opened - began, "first": first - opened, "later": sorted(later)[CALLS // 2]}


def make(name: str, folder: Path) -> float:
    """Seconds to compile ahead."""
    began, model = time.perf_counter(), open_model(name)
    least = 4 * model.limits.multiple
    Store(folder / "ahead").make(
        model.denoise.net,
        lambda: called(model, (2 * least, 3 * least), 2),
        lambda: called(model, (least, least), 1),
    )
    return time.perf_counter() - began


def child(how: str, name: str, folder: Path) -> dict[str, float]:
    with TemporaryDirectory(dir=folder) as empty:
        cache = empty if how == "cold" else str(folder / "warm")
        command = [sys.executable, __file__, "--only", how, "--model", name, "--folder", str(folder)]
        known = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=known)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="still-life", help="built-in model or folder (default still-life)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(once(given.only, given.model, given.folder)))
        return
    with TemporaryDirectory() as name:
        folder, names = Path(name), ("plain", "warm", "ahead")
        made, cold = make(given.model, folder), child("cold", given.model, folder)
        child("warm", given.model, folder)
        rounds = [
            {how: child(how, given.model, folder) for how in (names if turn % 2 else reversed(names))}
            for turn in range(given.repeats)
        ]
    rows = [
        harness.row("compile ahead, once", [made], "s"),
        harness.row("first answer, inductor, cold", [cold["first"]], "s"),
    ]
    for how in names:
        rows.append(harness.row(f"first answer, {how}", [one[how]["first"] for one in rounds], "s"))
        rows.append(harness.row(f"a later call, {how}", [1e3 * one[how]["later"] for one in rounds], "ms"))
    ratio = [one["warm"]["first"] / one["ahead"]["first"] for one in rounds]
    rows.append(harness.row("first answer, warm / ahead", ratio, "x", headline=True))
    about = harness.machine()
    for line in rows:
        print(line)
    if not given.dry:
        print(harness.write("compiled", f"{given.model}'s network compiled, in fresh processes", rows, about))


if __name__ == "__main__":
    main()
