"""The sources as the house rules see them: what files there are, what each imports and defines."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

CODE = ("kernels", "pipelines", "video", "three_d", "app", "assets")
"""The folders of the package."""
SCRIPTS = ("benchmarks", "docs")
TECHNIQUES = (
    "pipelines/samplers",
    "pipelines/schedules",
    "pipelines/guidance",
    "pipelines/wraps",
    "pipelines/patches",
    "pipelines/converts",
    "video/guidance",
    "video/wraps",
    "three_d/distill",
)
"""Folders in which one file is one technique. Names that begin with an underscore are shared parts."""
NOT_OURS = {".git", ".venv", "out", "build", "dist", "__pycache__"}


class Import(NamedTuple):
    module: str
    """Absolute, as `sfumato.pipelines.protocols` or `torch`."""
    line: int
    lazy: bool
    """Inside a function, so it runs when that is called."""


Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def files(root: Path = ROOT) -> tuple[Path, ...]:
    """What belongs to the project: tracked, or new and not ignored. Without git, all but the usual build folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (root / ".git").exists():
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout
        paths = [root / name for name in listed.split("\0") if name]
    else:
        paths = []
        for home, folders, names in os.walk(root):
            folders[:] = [f for f in folders if f not in NOT_OURS and not f.endswith((".egg-info", "_cache"))]
            paths += [Path(home, name) for name in names]
    return tuple(sorted(p for p in paths if p.is_file() and not p.is_symlink()))


def python(*folders: str) -> list[Path]:
    """The Python files of these folders."""
    homes = [ROOT / folder for folder in folders]
    return [p for p in files() if p.suffix == ".py" and any(home in p.parents for home in homes)]


def technique_files() -> list[Path]:
    return [p for p in python(*TECHNIQUES) if is_technique(p)]


def is_technique(path: Path) -> bool:
    return place(path.parent) in TECHNIQUES and not path.name.startswith("_")


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, tree: ast.Module | None = None) -> list[Import]:
    """Everything a file imports, relative names spelled out, names of submodules included."""
    return list(_imports(path, tree or parse(path), lazy=False))


def _imports(path: Path, node: ast.AST, *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = _absolute(path, child)
            names = [f"{module}.{alias.name}" for alias in child.names]
            found = [name for name in names if is_module(name)] or [module]
            yield from (Import(name, child.lineno, lazy) for name in found)
        elif isinstance(child, ast.Call) and (name := _imported_by_call(child)):
            yield Import(name, child.lineno, lazy)
        inner = lazy or isinstance(child, Function | ast.Lambda)
        yield from _imports(path, child, lazy=inner)


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    folder = path.parent.relative_to(ROOT).parts
    kept = folder[: len(folder) - (node.level - 1)]
    return ".".join(["sfumato", *kept, *([node.module] if node.module else [])])


def _imported_by_call(node: ast.Call) -> str | None:
    """The name in `import_module("sfumato...")`."""
    called = ast.unparse(node.func).rpartition(".")[2]
    if called != "import_module" or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    return str(node.args[0].value)


def is_module(name: str) -> bool:
    """Whether a dotted name under `sfumato` is a file or folder of ours."""
    parts = name.split(".")
    if parts[0] != "sfumato":
        return False
    path = ROOT.joinpath(*parts[1:])
    return path.with_suffix(".py").is_file() if len(parts) > 1 and not path.is_dir() else path.is_dir()


def functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["sfumato", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def block(text: str, language: str, number: int = 0) -> str:
    """The n-th fenced block of a language in a Markdown text."""
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    assert len(found) > number, f"there are {len(found)} {language} blocks, number {number + 1} is wanted"
    return str(found[number])


def listed(faults: list[str]) -> str:
    return "\n" + "\n".join(faults)
