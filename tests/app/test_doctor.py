"""`sfumato doctor`, `models`, `train`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from sfumato.app import diagnosis, inspection
from sfumato.app.catalogue import ROOT
from sfumato.assets.recipes import builtin
from sfumato.assets.recipes.learning.repa import Repa


def test_doctor(sfumato, tiny, monkeypatch):
    monkeypatch.setattr(inspection, "MODELS", tiny.parent)
    said = sfumato("doctor", "--json")
    report = said.data
    assert said.code == 0 and report["ok"] and report["problems"] == []
    assert report["hardware"]["cores"] >= 1 and report["hardware"]["ram_bytes"] > 2**28
    assert report["versions"]["torch"] and [m["name"] for m in report["models"]] == ["tiny-sd"]
    assert all(e["for"] and e["extra"] for e in report["extras"])
    assert report["techniques"]["sampler"] >= 1
    assert "tiny-sd" in sfumato("doctor").out and "tiny-sd" in sfumato("models").out
    assert sfumato("models", "--json").data["builtin"][0]["family"] == "sd"


def test_doctor_finds_problems(sfumato, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "MODELS", tmp_path / "none")
    monkeypatch.setenv("SFUMATO_CONFIG", "missing.toml")
    monkeypatch.setenv("SFUMATO_STEPZ", "1")
    said = sfumato("doctor", "--json")
    assert said.code == 1 and not said.data["ok"]
    problems = "\n".join(said.data["problems"])
    assert "train builtin" in problems and "missing.toml" in problems and "SFUMATO_STEPZ" in problems
    assert "PROBLEM" in sfumato("doctor").out


def test_extras_are_those_of_pyproject():
    text = (ROOT / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for package, (extra, _) in diagnosis.EXTRAS.items():
        assert any(item.replace("-", "_").startswith(package) for item in extras[extra])


def test_train_calls_the_recipe(sfumato, monkeypatch):
    called = {}
    monkeypatch.setattr(
        builtin, "train", lambda name, **given: called.update(given, name=name) or Path("done")
    )
    said = sfumato(
        "train", "builtin", "judge", "--minutes", "0.5", "--work", "w", "--every-task", "--repa", "0.5"
    )
    assert said.code == 0
    assert called == {
        "name": "judge",
        "minutes": 0.5,
        "work": Path("w"),
        "scenes": 16384,
        "every_task": True,
        "repa": Repa(0.5),
        "microdit": None,
    }


def test_train_unknown_name(sfumato):
    said = sfumato("train", "builtin", "still-lief")
    assert said.code == 2 and "still-life-unet" in said.err
