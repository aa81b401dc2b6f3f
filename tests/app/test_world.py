"""`sfumato world`: pictures and the truth about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sfumato.app.worlds import chosen_maps


def test_all_maps(sfumato):
    said = sfumato("world", "--seed", "3", "--size", "64x48", "-o", "w/")
    assert said.code == 0, said
    files = {Path(line).name for line in said.out.split()}
    scene = json.loads(Path("w/scene.json").read_text())
    things = scene["scene"]["things"]
    assert {"rgb.png", "depth.png", "normals.png", "ids.png", "lines.png", "scene.json"} <= files
    assert len([f for f in files if f.startswith("mask-")]) == len(things) == len(scene["boxes"])
    depth = Image.open("w/depth.png")
    assert depth.size == (64, 48) and depth.mode == "I;16"
    ids = np.array(Image.open("w/ids.png"))
    metres = np.array(depth)[ids >= 2] * 0.001
    assert metres.min() > 2 and metres.max() < 12
    assert np.array(depth)[ids == 0].tolist() == [65535] * int((ids == 0).sum())
    for i, thing in enumerate(things):
        mask = np.array(Image.open(f"w/mask-{i}-{thing['color']}-{thing['shape']}.png")) > 0
        assert (mask == (ids == i + 2)).all()
        x0, y0, x1, y1 = scene["boxes"][i]
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
    assert len(scene["camera"]["viewmat"]) == 4 and scene["caption"]


def test_same_seed_same_bytes_other_view_differs(sfumato):
    for name, more in (("a", ()), ("b", ()), ("c", ("--view", "back-left"))):
        assert (
            sfumato("world", "--seed", "3", "--size", "32", "--maps", "rgb", "-o", f"{name}/", *more).code
            == 0
        )
    a, b, c = (Path(n, "rgb.png").read_bytes() for n in "abc")
    assert a == b != c
    assert sorted(p.name for p in Path("a").iterdir()) == ["rgb.png", "scene.json"]


def test_dry_run_and_random_seed(sfumato, own_folder):
    said = sfumato("world", "--dry-run", "--json")
    assert said.code == 0 and said.data["request"]["seed"] >= 0 and list(own_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--maps", "rbg"], "did you mean 'rgb'"),
        (["--view", "bak"], "did you mean 'back'"),
        (["--size", "2x64"], "width: 2 must be at least 16"),
        (["-o", "/proc/nowhere/"], "can't be written to"),
    ],
)
def test_bad_input(sfumato, arguments, sentence):
    said = sfumato("world", "--seed", "1", *arguments)
    assert said.code == 2 and sentence in said.err and len(said.err.strip().splitlines()) == 1


def test_maps():
    assert chosen_maps(("lines, rgb",)) == ("rgb", "lines")
    assert len(chosen_maps(("all",))) == 6


def test_captions(sfumato):
    said = sfumato(
        "world", "a red sphere on top of a blue cube, in snow", "--seed", "1", "--size", "32", "-o", "w/"
    )
    assert said.code == 0, said
    scene = json.loads(Path("w/scene.json").read_text())["scene"]
    assert {(t["shape"], t["color"]) for t in scene["things"]} == {("sphere", "red"), ("cube", "blue")}
    assert scene["setting"] == "snow" and scene["relations"][0]["relation"] == "on top of"
    said = sfumato("world", "a red giraffe in snow", "--seed", "1", "-o", "w/")
    assert said.code == 2 and "giraffe" in said.err and "sphere" in said.err
