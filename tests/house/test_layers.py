"""kernels <- pipelines <- video <- three_d <- app, never back; and what one technique's file may see."""

from __future__ import annotations

from pathlib import Path

import pytest
from house.tree import CODE, ROOT, imports, is_technique, listed, place, python, technique_files

MAY_IMPORT = {
    "kernels": ("kernels",),
    "pipelines": ("kernels", "pipelines"),
    "video": ("kernels", "pipelines", "video"),
    "three_d": ("kernels", "pipelines", "video", "three_d"),
    "app": ("kernels", "pipelines", "video", "three_d", "app", "assets"),
    "assets": ("kernels", "assets"),
    "assets/recipes": ("kernels", "pipelines", "assets"),
    "assets/still_life": ("assets/still_life",),
}
"""Folder -> folders it may import from. The longest fitting folder counts."""

TECHNIQUE_MAY_IMPORT = (
    "sfumato.pipelines.protocols",
    "sfumato.pipelines.paths",
    "sfumato.pipelines.errors",
    "sfumato.pipelines.sites",
    "sfumato.pipelines.blocks",
    "sfumato.pipelines.moment",
    "sfumato.pipelines.spacing",
    "sfumato.kernels",
)
"""Beside these only the shared parts of its own folder (`_common` and other underscored files)."""


def home(path: str) -> str:
    """The longest folder of MAY_IMPORT that holds a path."""
    return max((f for f in MAY_IMPORT if path == f or path.startswith(f + "/")), key=len, default="")


def layer_faults(path: Path) -> list[str]:
    allowed = MAY_IMPORT[home(place(path))]
    faults = []
    for found in imports(path):
        if not found.module.startswith("sfumato."):
            continue
        target = "/".join(found.module.split(".")[1:])
        if not any(target == folder or target.startswith(folder + "/") for folder in allowed):
            faults.append(f"{place(path)}:{found.line}: imports {found.module}")
    return faults


def technique_faults(path: Path) -> list[str]:
    own = "sfumato." + place(path.parent).replace("/", ".") + "._"
    faults = []
    for found in imports(path):
        ours = found.module.partition(".")[0] == "sfumato"
        if ours and not found.module.startswith((*TECHNIQUE_MAY_IMPORT, own)):
            faults.append(f"{place(path)}:{found.line}: imports {found.module}")
    return faults


def test_folders_import_only_what_is_below_them() -> None:
    faults = [fault for path in python(*CODE) for fault in layer_faults(path)]
    assert not faults, listed(faults)


def test_a_technique_sees_protocols_and_its_own_folder_only() -> None:
    faults = [fault for path in technique_files() for fault in technique_faults(path)]
    assert not faults, listed(faults)


def test_nothing_of_the_package_imports_tests_scripts_or_itself_by_file() -> None:
    stray = ("tests", "benchmarks", "docs", *CODE)
    faults = [
        f"{place(path)}:{found.line}: imports {found.module}"
        for path in python(*CODE)
        for found in imports(path)
        if found.module.partition(".")[0] in stray
    ]
    assert not faults, listed(faults)


@pytest.mark.parametrize(
    ("file", "line", "faulty"),
    [
        ("pipelines/x.py", "from ..video import wraps", True),
        ("pipelines/x.py", "def f():\n    from sfumato.app.cli import main", True),
        ("pipelines/x.py", "from .. import three_d", True),
        ("pipelines/x.py", "from ..kernels import attention", False),
        ("kernels/x.py", "import sfumato.pipelines.protocols", True),
        ("assets/recipes/x.py", "from ...pipelines.loading import open_model", False),
        ("assets/still_life/x.py", "from ...pipelines.loading import open_model", True),
        ("app/x.py", 'import importlib\nimportlib.import_module("sfumato.tests.toys")', True),
    ],
)
def test_the_check_finds_wrong_directions(
    file: str, line: str, faulty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    for folder in ("video", "three_d", "kernels"):
        (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.setattr("house.tree.ROOT", tmp_path)
    assert bool(layer_faults(path)) is faulty


@pytest.mark.parametrize(
    ("line", "faulty"),
    [
        ("from .cfg import Cfg", True),
        ("from . import cfg", True),
        ("from ..samplers._common import at", True),
        ("from ..loading import open_model", True),
        ("from ._common import extrapolate", False),
        ("from ..protocols import Pred", False),
        ("from ...kernels import attention", False),
        ("import torch", False),
    ],
)
def test_the_check_finds_techniques_that_lean_on_others(
    line: str, faulty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pipelines" / "guidance" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    (path.parent / "cfg.py").touch()
    monkeypatch.setattr("house.tree.ROOT", tmp_path)
    assert is_technique(path)
    assert bool(technique_faults(path)) is faulty


def test_every_folder_of_code_has_a_rule() -> None:
    assert {home(folder) for folder in CODE} == set(CODE)
    assert all((ROOT / folder).is_dir() for folder in MAY_IMPORT)
