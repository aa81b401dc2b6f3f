"""One technique, one file: one public name, a frozen dataclass or a function, and a docstring that says it all."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from house.tree import listed, parse, place, technique_files
from sfumato.app.catalogue import HEADING, LABELS, doc_labels

LINES = 150
TASKS = {"image", "video", "3d"}
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\S+|https://|^none")


def faults(name: str, tree: ast.Module, lines: int) -> list[str]:
    """What is wrong with a technique's file."""
    found = [*shape_faults(tree), *doc_faults(ast.get_docstring(tree) or "")]
    if lines > LINES:
        found.append(f"{lines} lines, {LINES} are allowed")
    return [f"{name}: {fault}" for fault in found]


def doc_faults(doc: str) -> list[str]:
    found = [] if HEADING.match(doc) else ["the docstring must begin `<id>: summary`"]
    labels = doc_labels(doc)
    found += [f"the docstring lacks the line `{label}:`" for label in LABELS if not labels.get(label)]
    order = [label for label in labels if label in LABELS]
    if order != [label for label in LABELS if label in order]:
        found.append(f"the lines of the docstring stand in another order than {', '.join(LABELS)}")
    if not SOURCE.search(labels.get("Paper", "")):
        found.append("Paper must name an arXiv id, a DOI or an address, or say `none, because ...`")
    tasks = {task.strip(" .") for task in labels.get("Tasks", "").split(",")}
    if not tasks <= TASKS:
        found.append(
            f"Tasks: {', '.join(sorted(tasks - TASKS))} is no task; known are {', '.join(sorted(TASKS))}"
        )
    return found


def shape_faults(tree: ast.Module) -> list[str]:
    public = [
        n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")
    ]
    if len(public) != 1:
        return [f"one public name is wanted, there are {len(public)}: {', '.join(n.name for n in public)}"]
    node = public[0]
    return class_faults(node) if isinstance(node, ast.ClassDef) else []


def class_faults(node: ast.ClassDef) -> list[str]:
    found = []
    if not any(ast.unparse(d).startswith("dataclass(frozen=True") for d in node.decorator_list):
        found.append(f"{node.name} must be a `@dataclass(frozen=True)`")
    if node.bases:
        found.append(f"{node.name} has a base class; a technique has none")
    methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    if methods:
        found.append(f"{node.name} has more than `__call__`: {', '.join(methods)}")
    if not any(isinstance(n, ast.FunctionDef) and n.name == "__call__" for n in node.body):
        found.append(f"{node.name} has no `__call__`")
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if not told:
                found.append(f"the field {ast.unparse(item.target)} has no line of help below it")
    return found


@pytest.mark.parametrize("path", technique_files(), ids=place)
def test_technique(path: Path) -> None:
    found = faults(place(path), parse(path), len(path.read_text(encoding="utf-8").splitlines()))
    assert not found, listed(found)


GOOD = '''"""x: a thing.

Paper: arXiv:2207.12598, eq. 6
Shapes: any
Units and ranges: scale 0..1
Cost: none
Neutral: scale = 0
Errors: none
Differs: nothing
Tasks: image
"""

@dataclass(frozen=True)
class X:
    scale: float = 0.0
    """How much, 0..1."""

    def __call__(self, predict, path):
        return predict
'''


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("x: a thing", "a thing", "must begin"),
        ("Cost: none\n", "", "lacks the line `Cost:`"),
        ("Paper: arXiv:2207.12598, eq. 6", "Paper: Ho and Salimans", "Paper must name"),
        ("Cost: none\nNeutral: scale = 0", "Neutral: scale = 0\nCost: none", "another order"),
        ("Tasks: image", "Tasks: music", "music is no task"),
        ("(frozen=True)", "", "frozen=True"),
        ("class X:", "class X(Base):", "base class"),
        ("__call__", "run", "has no `__call__`"),
        ('    """How much, 0..1."""\n', "", "no line of help"),
        ("class X:", "class _X:", "one public name"),
    ],
)
def test_the_check_finds(old: str, new: str, said: str) -> None:
    assert not faults("x", ast.parse(GOOD), 20)
    assert GOOD.count(old) == 1
    assert said in listed(faults("x", ast.parse(GOOD.replace(old, new)), 20))
