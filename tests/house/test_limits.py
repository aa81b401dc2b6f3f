"""Sizes and habits: what no file may do, and how large a file, a function and the checkout may be."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from house.tree import (
    CODE,
    ROOT,
    SCRIPTS,
    Function,
    Import,
    files,
    functions,
    imports,
    listed,
    parse,
    place,
    python,
)

FILE_LINES = 300
FUNCTION_LINES = 60
PARAMETERS = 8
"""Without self and cls."""
TREE_BYTES = 60 * 10**6
MODELS_BYTES = 45 * 10**6
FILE_BYTES = 31 * 10**6

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "base", "common", "tools", "lib"}
BROAD = {"Exception", "BaseException"}

KWARGS_ALLOWED = {
    "app/cli.py: command": "its signature is built from the request; typer sees that one",
    "app/options.py: command": "its signature is built from the request; typer sees that one",
    "app/tasks.py: command": "its signature is that of the command it stands for, and one option; typer sees that one",
    "app/requests.py: field": "bounds of pydantic's own, checked by it",
    "pipelines/sites.py: answered": "stands in for a method of somebody else's class, whose arguments it hands on",
}
"""The few functions that may take `**anything`, and why."""

MACHINE_PATH = re.compile(r"(?<![\w.)}~-])/(?:root|work|Users/\w|home/[a-z])[/\w]")
UNFINISHED = re.compile(r"\b(?:TO" + "DO|FIX" + r"ME|X" + r"XX)\b")
TEXT = {".py", ".md", ".toml", ".txt", ".sh", ".yaml", ".yml", ".json", ".cfg", ""}


def size_faults(path: Path, tree: ast.Module) -> list[str]:
    faults = []
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > FILE_LINES and "tests" not in path.parts:
        faults.append(f"{place(path)}: {lines} lines, {FILE_LINES} are allowed")
    for node in functions(tree):
        where = f"{place(path)}:{node.lineno}: {node.name}"
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            faults.append(f"{where} has {length} lines, {FUNCTION_LINES} are allowed")
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > PARAMETERS:
            faults.append(f"{where} has {count} parameters, {PARAMETERS} are allowed")
    return faults


def habit_faults(path: Path, tree: ast.Module) -> list[str]:
    faults = []
    for node in ast.walk(tree):
        where = f"{place(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ExceptHandler) and (names := caught(node)) and names & {*BROAD, "everything"}:
            faults.append(f"{where}: catches {', '.join(sorted(names))}; name what can happen")
        if isinstance(node, ast.Raise) and node.exc and "NotImplementedError" in ast.unparse(node.exc):
            faults.append(f"{where}: NotImplementedError; leave it out until it is there")
        if (
            isinstance(node, Function)
            and f"{place(path)}: {node.name}" not in KWARGS_ALLOWED
            and node.args.kwarg
        ):
            faults.append(f"{where}: {node.name} takes **{node.args.kwarg.arg}; name its parameters")
        if isinstance(node, ast.Call) and probes(node):
            faults.append(f"{where}: getattr with a default; say which types are meant")
    return faults


def caught(node: ast.ExceptHandler) -> set[str]:
    if node.type is None:
        return {"everything"}
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return {ast.unparse(kind) for kind in kinds}


def probes(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 3


def environment_faults(path: Path, tree: ast.Module) -> list[str]:
    """The environment is read in app/ alone."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
            faults.append(f"{place(path)}:{node.lineno}: reads the environment; only app/ may")
    return faults


def text_faults(name: str, text: str) -> list[str]:
    faults = []
    for pattern, what in ((MACHINE_PATH, "a path of one machine"), (UNFINISHED, "an unfinished mark")):
        for found in pattern.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            faults.append(f"{name}:{line}: {what}: {found[0]}")
    return faults


def test_files_and_functions_stay_small() -> None:
    faults = [f for p in python(*CODE, *SCRIPTS, "tests") for f in size_faults(p, parse(p))]
    assert not faults, listed(faults)


def test_no_vague_modules() -> None:
    faults = [
        place(p) for p in python(*CODE, *SCRIPTS) if p.stem in VAGUE_NAMES or p.parent.name in VAGUE_NAMES
    ]
    assert not faults, f"modules are nouns; rename {listed(faults)}"


def test_no_catch_alls() -> None:
    faults = [f for p in python(*CODE, *SCRIPTS) for f in habit_faults(p, parse(p))]
    assert not faults, listed(faults)


def test_allowed_kwargs_are_still_there() -> None:
    present = {
        f"{place(p)}: {node.name}" for p in python(*CODE) for node in functions(parse(p)) if node.args.kwarg
    }
    gone = set(KWARGS_ALLOWED) - present
    assert not gone, f"no longer needed in KWARGS_ALLOWED: {gone}"


def test_only_app_reads_the_environment() -> None:
    inner = [p for p in python(*CODE) if place(p).partition("/")[0] != "app"]
    faults = [f for p in inner for f in environment_faults(p, parse(p))]
    assert not faults, listed(faults)


def test_no_paths_of_one_machine_and_nothing_unfinished() -> None:
    texts = [p for p in files() if p.suffix in TEXT and p.stat().st_size < 10**6 and "models" not in p.parts]
    faults = [f for p in texts for f in text_faults(place(p), p.read_text(encoding="utf-8"))]
    assert not faults, listed(faults)


def test_the_checkout_stays_small() -> None:
    models = ROOT / "assets" / "models"
    total = sum(p.stat().st_size for p in files())
    large = [place(p) for p in files() if p.stat().st_size > FILE_BYTES]
    held = sum(p.stat().st_size for p in files() if models in p.parents)
    assert total <= TREE_BYTES, f"the checkout has {total / 1e6:.1f} MB, {TREE_BYTES / 1e6:.0f} are allowed"
    assert not large, f"above {FILE_BYTES / 1e6:.0f} MB: {listed(large)}"
    assert held <= MODELS_BYTES, f"the models have {held / 1e6:.1f} MB, {MODELS_BYTES / 1e6:.0f} are allowed"


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (ValueError, BaseException):\n    pass",
        "try:\n    f()\nexcept:\n    pass",
        "def f():\n    raise NotImplementedError('later')",
        "def f(**options): ...",
        "getattr(net, 'config', None)",
    ],
)
def test_the_check_finds_bad_habits(source: str) -> None:
    assert len(habit_faults(ROOT / "app" / "x.py", ast.parse(source))) == 1


def test_the_check_finds_what_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def f(a, b, c, d, e, f, g, h, i):\n" + "    x = 1\n" * FILE_LINES
    path = tmp_path / "x.py"
    path.write_text(source)
    monkeypatch.setattr("house.tree.ROOT", tmp_path)
    assert len(size_faults(path, ast.parse(source))) == 3


def test_the_check_finds_paths_and_marks() -> None:
    slash = "/"
    assert len(text_faults("x", f"see {slash}home{slash}ada{slash}sfumato and {slash}root{slash}x")) == 2
    assert len(text_faults("x", "# TO" + "DO later")) == 1
    assert not text_faults(
        "x", f"https://a.org{slash}work{slash}x, .{slash}root{slash}x, $(HOME){slash}work{slash}x"
    )


def test_lazy_imports_are_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("house.tree.ROOT", tmp_path)
    path = tmp_path / "x.py"
    path.write_text("import json\ndef f():\n    import torch\n")
    assert imports(path) == [Import("json", 1, False), Import("torch", 3, True)]
