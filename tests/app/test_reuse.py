"""The dial: measured once, then the fastest technique within the loss allowed, written into the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from sfumato.app import reuse
from sfumato.pipelines.reuse_curve import CURVE, Point, ReuseCurve

ASK = ("--size", "64x64", "--steps", "4", "--seed", "1", "-p", "a cube")
POINTS = (Point("deepcache:interval=2", 0.01, 0.7), Point("deepcache:interval=3", 0.1, 0.5))


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy, since a curve is written beside the model."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_the_dial_is_the_technique_it_stands_for(sfumato: Any, folder: Path) -> None:
    ReuseCurve(4, POINTS).write(folder)
    for allowed, interval in ((0.02, 2), (0.5, 3)):
        said = [
            sfumato("generate", *ASK, "-m", folder, *chosen, "-o", f"{name}{interval}.png", "--json")
            for name, chosen in (
                ("", ("--reuse", allowed)),
                ("own", ("-t", f"deepcache:interval={interval}")),
            )
        ]
        assert [one.code for one in said] == [0, 0], said
        told = [one.data["request"]["techniques"] for one in said]
        assert told[0] == told[1] == [{"id": "deepcache", "settings": {"interval": interval}}]
    plain = sfumato("generate", *ASK, "-m", folder, "-o", "plain.png")
    assert plain.code == 0
    assert sfumato("replay", "3.png", "-o", "again.png").code == 0
    assert pixels("again.png") == pixels("own3.png") == pixels("3.png") != pixels("plain.png")


def pixels(name: str) -> bytes:
    from PIL import Image

    return Image.open(name).tobytes()


def test_what_the_dial_refuses(sfumato: Any, folder: Path) -> None:
    said = sfumato("generate", *ASK, "-m", folder, "--reuse", 0.1)
    assert said.code == 2 and "nobody has measured" in said.err and "sfumato train reuse" in said.err
    ReuseCurve(5, POINTS).write(folder)
    said = sfumato("generate", *ASK, "-m", folder, "--reuse", 0.1)
    assert said.code == 2 and "ask for --steps 5 or more" in said.err
    ReuseCurve(4, POINTS).write(folder)
    said = sfumato("generate", *ASK, "-m", folder, "--reuse", 0.005)
    assert said.code == 2 and "the least that can be lost for a gain, 0.01" in said.err
    ReuseCurve(4, (*POINTS, Point("deepcache:interval=4", 0.0, 1.1))).write(folder)
    said = sfumato("generate", *ASK, "-m", folder, "--reuse", 0.005)
    assert said.code == 2 and "the least that can be lost for a gain, 0.01" in said.err, "slower is no gain"
    ReuseCurve(4, (Point("deepcache:interval=4", 0.0, 1.1),)).write(folder)
    said = sfumato("generate", *ASK, "-m", folder, "--reuse", 0.1)
    assert said.code == 2 and "gains nothing: of the ways that were measured on" in said.err
    assert sfumato("generate", *ASK, "-m", folder, "--reuse", 1.5).code == 2
    ReuseCurve(4, POINTS).write(folder)
    said = sfumato("generate", *ASK, "-m", folder, "--reuse", 0.5, "-t", "deepcache")
    assert said.code == 2 and "both need the slot 'block cache'" in said.err


def test_measuring(sfumato: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "KINDS", (reuse.Kind("still-life-unet", ("deepcache:interval=2",), ()),))
    monkeypatch.setattr(reuse, "NEGATIVE", ())
    own = json.dumps({"width": 64, "height": 64})
    (folder / "sfumato.json").write_text(own)
    said = sfumato("train", "reuse", folder, "--steps", 3, "--prompts", 1, "--json")
    assert said.code == 0, said.err
    (point,) = said.data["points"]
    assert point["technique"] == "deepcache:interval=2" and point["loss"] > 0 and point["time"] > 0
    assert (folder / CURVE).is_file()


def test_measuring_some_ways_alone(sfumato: Any, folder: Path) -> None:
    (folder / "sfumato.json").write_text(json.dumps({"width": 64, "height": 64, "guidance": 3.0}))
    asked = ("deepcache:interval=2", "deepcache:interval=3 + cfg-skip:interval=3")
    given = [part for one in asked for part in ("--way", one)]
    said = sfumato("train", "reuse", folder, "--steps", 3, "--prompts", 1, *given, "--json")
    assert said.code == 0, said.err
    assert [point["technique"] for point in said.data["points"]] == list(asked)
    for wrong, words in (
        ("deepcache:interval", "is not key=value"),
        ("int8", "is neither a patch nor a guidance"),
        ("nothing", "nothing"),
        ("block-cache:interval=2", "blocks"),
    ):
        said = sfumato("train", "reuse", folder, "--steps", 3, "--prompts", 1, "--way", wrong)
        assert said.code == 2 and words in said.err and "Traceback" not in said.err, said.err


def test_learning_a_table(sfumato: Any, tmp_path: Path) -> None:
    folder = tiny_models.flux(tmp_path / "flux")
    (folder / "sfumato.json").write_text(json.dumps({"width": 64, "height": 64, "guidance": 2.0}))
    ask = ("--steps", 3, "--computed", 0.7, "--pictures", 1)
    said = sfumato("train", "harmonica", folder, "-o", "t.json", *ask, "--json")
    assert said.code == 0, said.err
    assert said.data["blocks"] == 2 and said.data["computed"] == 0.6667
    assert "trial 2: the final latents' error is -" in said.err
    assert "1 pictures at 3 steps, 1 at once in " in said.err
    (tmp_path / "a").mkdir()
    said = sfumato("train", "harmonica", folder, "-o", "a")
    assert said.code == 2 and "is a folder" in said.err
    for wrong in ("0", "1.5", "nan"):
        said = sfumato("train", "harmonica", folder, "-o", "u.json", "--computed", wrong)
        assert said.code == 2 and "computed" in said.err and "Traceback" not in said.err, said.err
    ask = ("--size", "64x64", "--steps", "3", "-p", "a cube", "-m", folder)
    assert sfumato("generate", *ask, "-t", "block-cache:table=t.json").code == 0
    said = sfumato("generate", *ask, "-t", "block-cache:table=none.json")
    assert said.code == 2 and "none.json cannot be read" in said.err


def test_every_candidate_can_be_built(tmp_path: Path) -> None:
    from sfumato.app.builder import build

    both = (*reuse.BLOCKS_AND_NEGATIVE, *reuse.SKIPS_AND_NEGATIVE)
    for text in (*reuse.BLOCKS, *reuse.SKIPS, *reuse.NEGATIVE, *both):
        for technique in reuse.parsed(text):
            build(technique)
        found = reuse.way(text, 4.0)
        assert len(found.patches) == int("cfg-skip" not in text or text in both)
        assert (found.guidance is not None) == ("cfg-skip" in text)


def test_guidance_that_is_left_open_is_skipped_too(sfumato: Any, folder: Path) -> None:
    """The scale is the request's; whoever chose a guidance, or none, keeps it."""
    both = Point("deepcache:interval=2 + cfg-skip:interval=2", 0.01, 0.5)
    ReuseCurve(4, (both, Point("deepcache:interval=4", 0.01, 0.7))).write(folder)
    for given, wanted in (
        (("--guidance", 3), [("deepcache", {"interval": 2}), ("cfg-skip", {"interval": 2, "scale": 3.0})]),
        (("--guidance", 1), [("deepcache", {"interval": 4})]),
        (("-t", "cfg:scale=3"), [("cfg", {"scale": 3}), ("deepcache", {"interval": 4})]),
    ):
        for dial in (("--reuse", 0.05), ("--optimize", "fast")):
            said = sfumato("generate", *ASK, "-m", folder, *dial, *given, "-o", "a.png", "--json")
            assert said.code == 0, said.err
            told = [(t["id"], t["settings"]) for t in said.data["request"]["techniques"]]
            assert [one for one in told if one[0] in ("cfg", "deepcache", "cfg-skip")] == wanted
