"""Killed at any moment: what the manifest tells is whole, and the same command gives the undisturbed run's bytes."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from batches import lines, pictures
from killing import Spot, die, end
from killing import _spotted as spotted
from sfumato.app import cli, output
from sfumato.app.batch import manifest, running
from sfumato.app.batch.manifest import digest
from sfumato.pipelines.text_to_image import TextToImage

ROWS = [{"seed": seed, "prompt": ("a cube", "a mug")[seed % 2], "count": 1 + seed // 5} for seed in range(6)]
SPOTS = [
    Spot("sample", 1, "before"),
    Spot("sample", 2, "after"),
    Spot("decode", 3, "before"),
    Spot("write", 1, "within"),
    Spot("write", 3, "after"),
    Spot("write", 5, "before"),
    Spot("append", 1, "before"),
    Spot("append", 1, "within"),
    Spot("append", 2, "after"),
    Spot("report", 1, "before"),
]


def arm(spot: Spot) -> None:
    """In a child: put the trap into the function that is meant."""
    if spot.place == "sample":
        TextToImage.sample = spotted(spot, TextToImage.sample)
    elif spot.place == "decode":
        TextToImage.decode = spotted(spot, TextToImage.decode)
    elif spot.place == "write":
        manifest.write_whole = spotted(spot, output.write_whole, half_a_file)
    elif spot.place == "append":
        os.write = spotted(spot, os.write, partial(half_a_line, os.write))
    else:
        running.write_report = spotted(spot, running.write_report)


def half_a_file(path: Path, write: Callable) -> None:
    (path.parent / f".{path.name}.half.part").write_bytes(b"half of it")
    die()


def half_a_line(write: Callable, handle: int, text: bytes) -> None:
    write(handle, text[: len(text) // 2])
    os.fsync(handle)
    die()


def child(arguments: list[str], spot: Spot | None = None) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)  # the threads of a pool do not survive a fork
        if spot is not None:
            arm(spot)
        code = cli.main(arguments)
    finally:
        os._exit(code)


def check_whole() -> None:
    """What must hold after every kill."""
    if not Path("made/manifest.jsonl").exists():
        return
    for line in manifest.Manifest(Path("made")).read().values():
        for file in line.data["files"]:
            assert digest(Path("made", file["path"]).read_bytes()) == file["sha256"]


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[int, bytes]]:
    """The command, and what it makes."""
    folder = tmp_path_factory.mktemp("whole")
    base = {"model": str(tiny), "size": "64x64", "steps": 2}
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(base | row) for row in ROWS))
    command = ["batch", "run", str(folder / "rows.jsonl"), "--per-batch", "3", "--quiet", "-o"]
    assert cli.main([*command, str(folder / "made")]) == 0
    return [*command, "made"], pictures(folder / "made")


@pytest.mark.parametrize("spot", SPOTS, ids=str)
def test_killed_at_a_spot(spot, undisturbed):
    command, whole = undisturbed
    assert end(child(command, spot)), "it lived"
    check_whole()
    assert not end(child(command))
    assert pictures() == whole
    pngs = [path for path in Path("made").glob("*.png") if path.name != "contact-sheet.png"]
    assert len(pngs) == 7, "none twice, none half"


@pytest.mark.slow
def test_killed_at_random(undisturbed):
    command, whole = undisturbed
    draw, kills = random.Random(5), 0
    for _ in range(25):
        killed = end(child(command), after=draw.uniform(0.02, 0.5))
        check_whole()
        kills += killed
        if Path("made/manifest.jsonl").exists() and len(lines()) >= 7:
            break
    end(child(command))
    assert kills and pictures() == whole
