"""The catalogue: every technique, family and task, read from the sources without importing them.

A technique is a file in one of the technique folders with one public dataclass or function and a docstring
that begins `<id>: summary`. Adding the file is all it takes. `builder.build` makes the object.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

FOLDERS = {
    "pipelines/samplers": "sampler",
    "pipelines/schedules": "schedule",
    "pipelines/guidance": "guidance",
    "pipelines/wraps": "wrap",
    "pipelines/patches": "patch",
    "pipelines/converts": "convert",
    "video/guidance": "guidance",
    "video/wraps": "wrap",
    "three_d/distill": "distill",
    "pipelines/families": "family",
    "video/families": "family",
    "assets/recipes/learning": "recipe",
}
SYSTEMS = ("pipelines/row_loras.py", "pipelines/parallel/ulysses.py", "app/batch/planning.py")
"""What is published as a system and reached in another way than as a technique; each file says how."""
APART = ("family", "recipe", "system")
"""Kinds that do not act on a run by themselves."""
HEADING = re.compile(r"([a-z0-9][a-z0-9+._-]*): +(\S.*)")
ALIAS = re.compile(r"\(alias(?:es)? ([^)]+)\)")
LABEL = re.compile(r"\*?([A-Z][A-Za-z ]{2,20})\*?:\s+(.*)")
LABELS = ("Paper", "Shapes", "Units and ranges", "Cost", "Neutral", "Errors", "Differs", "Tasks")
USE = "Use"
"""How a system is reached."""


@dataclass(frozen=True)
class Setting:
    name: str
    type: str
    default: Any
    """A plain value, or the source text of the default; `...` for one that must be given."""
    help: str


@dataclass(frozen=True)
class Entry:
    """One file of the catalogue."""

    id: str
    kind: str
    summary: str
    paper: str
    tasks: tuple[str, ...]
    settings: tuple[Setting, ...]
    name: str
    """The public name in the file."""
    file: str
    doc: str
    aliases: tuple[str, ...] = ()
    presets: tuple[tuple[str, str, str], ...] = ()
    """(alias, setting, value): what an alias stands for."""

    def called(self, name: str) -> Entry:
        """The same with the defaults that it has under one of its names."""
        fixed = {setting: value for alias, setting, value in self.presets if alias == name}
        settings = tuple(replace(s, default=fixed.get(s.name, s.default)) for s in self.settings)
        return replace(self, settings=settings)

    @property
    def module(self) -> str:
        return "sfumato." + self.file.removesuffix(".py").replace("/", ".")

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        settings = [
            {"name": s.name, "type": s.type, "default": None if s.default is ... else s.default,
             "needed": s.default is ..., "help": s.help}
            for s in self.settings
        ]  # fmt: skip
        return {
            "id": self.id,
            "kind": self.kind,
            "aliases": list(self.aliases),
            "summary": self.summary,
            "paper": self.paper,
            "tasks": list(self.tasks),
            "settings": settings,
            "file": self.file,
        }


Constants = dict[str, Any]
"""Values by name."""


class CatalogueError(RuntimeError):
    """A technique file breaks the rules of the catalogue."""


@cache
def catalogue(root: Path = ROOT) -> dict[str, Entry]:
    """All entries by id, families included. Two files with one id are an error that names both."""
    entries: dict[str, Entry] = {}
    names: dict[str, Entry] = {}
    for entry in _entries(root):
        entries[entry.id] = entry
        for name in (entry.id, *entry.aliases):
            other = names.setdefault(name, entry)
            if other is not entry:
                raise CatalogueError(f"{entry.file} and {other.file} share the id {name!r}")
    return dict(sorted(entries.items(), key=lambda item: (item[1].kind, item[0])))


def techniques(kind: str | None = None) -> dict[str, Entry]:
    """The entries that act on a run, or those of one kind."""
    return {k: e for k, e in catalogue().items() if (e.kind == kind if kind else e.kind not in APART)}


def _entries(root: Path) -> Iterator[Entry]:
    for folder, kind in FOLDERS.items():
        for path in sorted((root / folder).glob("*.py")):
            if not path.name.startswith("_"):
                yield read_entry(path, kind, root)
    for name in SYSTEMS:
        if (root / name).is_file():
            yield read_entry(root / name, "system", root)


def read_entry(path: Path, kind: str, root: Path = ROOT) -> Entry:
    """The entry of one file, from its syntax tree."""
    file = path.relative_to(root).as_posix()
    source = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise CatalogueError(f"{file}: line {error.lineno}: {error.msg}") from error
    public = _public(tree, path.stem)
    if public is None:
        raise CatalogueError(f"{file}: no public class or function")
    docs = [ast.get_docstring(tree) or "", ast.get_docstring(public) or ""]
    doc = next((d for d in docs if HEADING.match(d)), None)
    if doc is None and kind != "family":
        raise CatalogueError(f"{file}: the docstring must begin `<id>: summary`")
    doc = doc or docs[0]
    heading = HEADING.match(doc)
    name, summary = (
        (heading[1], heading[2]) if heading else (path.stem.replace("_", "-"), doc.partition("\n")[0])
    )
    labels = doc_labels(doc)
    settings: tuple[Setting, ...] = ()
    if isinstance(public, ast.ClassDef) and kind != "system":
        settings = tuple(_settings(public, source.splitlines(), constants(tree, path)))
    tasks = tuple(t.strip(" .") for t in labels.get("Tasks", "").split(",") if t.strip(" ."))
    named = ALIAS.search(summary)
    called = [a.strip().partition(":") for a in named[1].split(",")] if named else []
    aliases = tuple(alias for alias, _, _ in called)
    stand = [(alias, preset.partition("=")) for alias, _, preset in called if preset]
    presets = tuple((alias, setting, value) for alias, (setting, _, value) in stand)
    summary = ALIAS.sub("", summary).strip(" .")
    paper = labels.get("Paper", "")
    return Entry(name, kind, summary, paper, tasks, settings, public.name, file, doc, aliases, presets)


def doc_labels(doc: str) -> dict[str, str]:
    """The `Label: text` lines of a docstring, continued lines joined."""
    found: dict[str, str] = {}
    label = None
    for line in doc.splitlines()[1:]:
        match = LABEL.match(line.strip())
        if match and match[1] in (*LABELS, USE):
            label = match[1]
            found[label] = match[2]
        elif label and line.strip():
            found[label] += " " + line.strip()
        else:
            label = None
    return found


def _public(tree: ast.Module, stem: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The public class or function: in `__all__`, named like the file, told by its docstring, or the last."""
    found = [
        node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"
    ]
    exported = _exported(tree)
    named = [n for n in found if n.name in exported]
    if not named:
        plain = stem.replace("_", "")
        named = [n for n in found if n.name.lower().replace("_", "") == plain]
    named = named or [n for n in found if HEADING.match(ast.get_docstring(n) or "")]
    named = named or [n for n in found if isinstance(n, ast.ClassDef) and _has_call(n)]
    named = named or found
    return named[-1] if named else None


def _exported(tree: ast.Module) -> tuple[str, ...]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            return tuple(ast.literal_eval(node.value))
    return ()


def _has_call(node: ast.ClassDef) -> bool:
    return any(isinstance(item, ast.FunctionDef) and item.name == "__call__" for item in node.body)


def _settings(node: ast.ClassDef, lines: list[str], known: Constants) -> Iterator[Setting]:
    """Fields of a dataclass; the help is the string below a field or the comment beside it."""
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = ast.unparse(item.annotation)
        if item.target.id.startswith("_") or annotation.startswith("ClassVar"):
            continue
        match after:
            case ast.Expr(value=ast.Constant(value=str(below))):
                help_text = " ".join(below.split())
            case _:
                comment = re.search(r"#\s*(?!noqa|type:)(.*)$", lines[(item.end_lineno or item.lineno) - 1])
                help_text = comment[1].strip() if comment else ""
        yield Setting(item.target.id, annotation, _default(item.value, known), help_text)


def _default(value: ast.expr | None, known: Constants) -> Any:
    if value is None:
        return ...
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "dataclasses.field"):
        keywords = {k.arg: k.value for k in value.keywords}
        return _default(keywords["default"], known) if "default" in keywords else ast.unparse(value)
    try:
        return _plain(value, known)
    except ValueError:
        return ast.unparse(value)


def _plain(value: ast.expr, known: Constants) -> Any:
    """A literal, in which names of constants may stand; ValueError for anything else."""
    if isinstance(value, ast.Name) and value.id in known:
        return known[value.id]
    if isinstance(value, ast.Tuple):
        parts: list[Any] = []
        for item in value.elts:
            if isinstance(item, ast.Starred):
                parts += _plain(item.value, known)
            else:
                parts.append(_plain(item, known))
        return tuple(parts)
    return ast.literal_eval(value)


def constants(tree: ast.Module, path: Path) -> Constants:
    """The plain values under names in capitals: of a file, and of files of the package that it imports them from."""
    found: Constants = {}
    for node in tree.body:
        match node:
            case ast.ImportFrom(module=str(module), names=names, level=level) if level:
                file = path.parents[level - 1] / f"{module.replace('.', '/')}.py"
                wanted = [one.name for one in names if one.name.isupper()]
                if wanted and file.is_file():
                    there = constants(ast.parse(file.read_text(encoding="utf-8")), file)
                    found |= {name: there[name] for name in wanted if name in there}
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
                with suppress(ValueError):
                    found[name] = _plain(value, found)
    return found
