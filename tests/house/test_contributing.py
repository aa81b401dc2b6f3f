"""The worked example of CONTRIBUTING.md keeps the house rules and runs."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
from house.test_layers import technique_faults
from house.test_limits import habit_faults, size_faults
from house.test_techniques import faults
from house.tree import ROOT, block

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILE = "pipelines/wraps/static_threshold.py"


def test_the_example_keeps_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FILE in PAGE
    path = tmp_path / FILE
    path.parent.mkdir(parents=True)
    path.write_text(block(PAGE, "python"))
    tree = ast.parse(path.read_text())
    monkeypatch.setattr("house.tree.ROOT", tmp_path)
    assert not [*faults(FILE, tree, len(path.read_text().splitlines())), *technique_faults(path)]
    assert not [*size_faults(path, tree), *habit_faults(path, tree)]


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "static_threshold.py"
    path.write_text(block(PAGE, "python"))
    spec = importlib.util.spec_from_file_location("sfumato.pipelines.wraps.static_threshold", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    tests: dict[str, object] = {}
    exec(compile(block(PAGE, "python", 1), "CONTRIBUTING.md", "exec"), tests)
    (test,) = (value for name, value in tests.items() if name.startswith("test_"))
    assert callable(test)
    test()
