"""What is installed is what is here: the package list, the declared dependencies, the tested versions, the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from house.tree import CODE, ROOT, SCRIPTS, files, imports, listed, place, python
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DISTRIBUTION = {"PIL": "pillow", "yaml": "pyyaml", "starlette": "fastapi"}
"""Import name -> name to install, where they differ."""
OF_AN_EXTRA = {"app/server": "serve", "kernels/triton": "gpu", "app/ui": "ui"}
"""Folders that belong to an extra as a whole: nothing outside needs them before it is asked for."""
KERNELS = tuple(
    f"kernels/native/{name}"
    for name in (
        "attention_float.cpp",
        "attention_int8.cpp",
        "norms.h",
        "products.cpp",
        "roundings.cpp",
        "vectors.h",
        "winograd.cpp",
        "winograd.h",
        "winograd_int8.cpp",
    )
)
DATA = (
    "app/ui/pages.css",
    "app/ui/pages.js",
    "assets/models",
    "pipelines/doors/configs",
    *KERNELS,
    "py.typed",
)
"""What the wheel carries beside code."""


def requirements() -> dict[str, list[Requirement]]:
    """Group -> what it asks for; the group of every installation is ''."""
    groups = {"": PROJECT["project"]["dependencies"], **PROJECT["project"]["optional-dependencies"]}
    return {group: [Requirement(text) for text in texts] for group, texts in groups.items()}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {plain(name): pinned for name, pinned in pairs}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_folder_with_an_init_is_in_the_package_list() -> None:
    found = {"sfumato"} | {
        "sfumato." + place(p.parent).replace("/", ".") for p in python(*CODE) if p.name == "__init__.py"
    }
    named = PROJECT["tool"]["setuptools"]["packages"]
    assert set(named) == found
    assert named == sorted(named)


def test_every_folder_of_code_has_an_init() -> None:
    faults = [place(p) for p in python(*CODE) if not (p.parent / "__init__.py").is_file()]
    assert not faults, listed(faults)


def test_the_root_init_is_a_docstring() -> None:
    text = (ROOT / "__init__.py").read_text(encoding="utf-8").strip()
    assert text.startswith('"""') and text.count('"""') == 2 and text.endswith('"""')


def test_everything_imported_is_declared() -> None:
    """At the top of a file only what every installation has; inside functions an extra may be used too.

    A folder that belongs to an extra may use that at the top.
    """
    always = {plain(r.name) for r in requirements()[""]}
    known = always | {plain(r.name) for group in requirements().values() for r in group}
    faults = []
    for path in python(*CODE, *SCRIPTS):
        extra = OF_AN_EXTRA.get(place(path.parent), "")
        own = always | {plain(r.name) for r in requirements()[extra]}
        siblings = {p.stem for p in path.parent.glob("*.py")} if path.parts[-2] in SCRIPTS else set()
        for found in imports(path):
            top = found.module.partition(".")[0]
            if top in ("sfumato", "__future__", *siblings) or top in sys.stdlib_module_names:
                continue
            if plain(DISTRIBUTION.get(top, top)) not in (known if found.lazy else own):
                faults.append(f"{place(path)}:{found.line}: {top} is not declared in pyproject.toml")
    assert not faults, listed(faults)


def test_the_tested_versions_fit_what_is_declared() -> None:
    faults = []
    for group in ("", "dev"):
        for wanted in requirements()[group]:
            pinned = pins().get(plain(wanted.name))
            if pinned is None or Version(pinned) not in wanted.specifier:
                faults.append(f"{wanted} has the tested version {pinned}")
    assert not faults, f"constraints.txt: {listed(faults)}"


def test_the_tested_versions_are_installed() -> None:
    """A result is only as reproducible as its versions."""
    core = {plain(r.name) for group in ("", "dev") for r in requirements()[group]}
    faults = [
        f"{name} {version(name)} is installed, {pinned} was tested"
        for name, pinned in pins().items()
        if name in core and Version(version(name)).public != pinned
    ]
    assert not faults, f"run `make setup`, or mend constraints.txt: {listed(faults)}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy of the checkout, built with what is installed."""
    home = tmp_path_factory.mktemp("wheel")
    for path in files():
        if path.relative_to(ROOT).parts[0] not in ("tests", "docs", "benchmarks"):
            target = home / "source" / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(home)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=home / "source", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(home.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_code_and_models_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    data = [p for p in files() if any(place(p) == d or place(p).startswith(d + "/") for d in DATA)]
    wanted = {f"sfumato/{place(p)}" for p in [*python(*CODE), ROOT / "__init__.py", *data]}
    assert packed == wanted, f"missing {sorted(wanted - packed)[:5]}, too much {sorted(packed - wanted)[:5]}"


@pytest.mark.slow
def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import sfumato.app.catalogue as c; print(c.__file__, len(c.techniques()))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, count = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert int(count) > 0
