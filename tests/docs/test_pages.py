"""The docs are true: generated parts are up to date, links lead somewhere, examples run, commands parse."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from house.tree import ROOT, block, files, place
from sfumato.app.catalogue import catalogue
from sfumato.app.cli import app
from sfumato.app.requests import REQUESTS
from sfumato.pipelines.loading import MODELS

PAGES = [p for p in files() if p.suffix == ".md"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NEEDS = re.compile(r'open_model\("([\w-]+)"')


def builder():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date() -> None:
    old = [place(p) for p, text in builder().pages().items() if p.read_text(encoding="utf-8") != text]
    assert not old, f"run `make docs`: {', '.join(old)}"


def test_blocks_are_replaced_whole() -> None:
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb"
    new = builder().between(text, "x", "new")
    assert new == "a\n<!-- begin x -->\nnew\n<!-- end x -->\nb"
    assert builder().between(new, "x", "new") == new
    with pytest.raises(SystemExit, match="once each"):
        builder().between("no marks", "x", "new")


def test_results_become_tables() -> None:
    about = {"cpu": "C", "gpu": "", "cores": 2, "threads": 1, "load": 0.1, "python": "3", "torch": "2"}
    rows = [
        {
            "what": "a",
            "median": 1.2345,
            "low": 1,
            "high": 2000.4,
            "unit": "s",
            "n": 3,
            "bar": "<= 2",
            "headline": True,
        }
    ]
    result = {"title": "T", "command": "python x.py", "machine": about, "rows": rows}
    assert "| a | 1.23 | 1 to 2000 | s | 3 | <= 2 |" in builder().section(result)
    assert "| a | 1.23 s | 1 to 2000 |" in builder().headlines([result])
    assert "make bench" in builder().headlines([])


def test_effects_are_read_from_results() -> None:
    build = builder()
    rows = {r["what"]: r for r in result("quantisation-still-life")["rows"]}
    found = rows["svdquant W4A4: PSNR"]
    told = {
        "claim": "C",
        "from": {"a": "quantisation-still-life"},
        "measured": "{a|svdquant W4A4: PSNR} dB, at most {a|svdquant W4A4: PSNR|high}",
    }
    said = build.from_rows("x", told)
    assert said["measured"] == f"{build.number(found['median'])} dB, at most {build.number(found['high'])}"
    assert said["command"] == result("quantisation-still-life")["command"]
    with pytest.raises(SystemExit, match=r"effects.toml: x: no row 'svdquant' in 'a'"):
        build.from_rows("x", told | {"measured": "{a|svdquant}"})


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_effects_belong_to_something() -> None:
    """Every effect is that of an entry of the catalogue, or of a name that one has besides."""
    known = {name for entry in catalogue().values() for name in (entry.id, *entry.aliases)}
    assert set(builder().effects()) <= known
    written = {file.stem for file in (ROOT / "benchmarks" / "results" / "effects").glob("*.json")}
    assert not written & set(builder().effects()), "told twice"


@pytest.mark.parametrize("page", PAGES, ids=place)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for target in LINK.findall(text):
        name, _, part = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = page if not name else (page.parent / name)
        found = there.exists() and (not part or part in anchors(there))
        if not found:
            broken.append(target)
    assert not broken, f"{place(page)} links to what is not there: {', '.join(broken)}"


def anchors(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^a-z0-9 _-]", "", h.lower()).replace(" ", "-") for h in headings} | set(
        re.findall(r'<a id="([^"]+)">', text)
    )


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/attention.md",
        "docs/batch.md",
        "docs/generate.md",
        "docs/jobs.md",
        "docs/optimize.md",
        "docs/world.md",
    ],
)
def test_python_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = block((ROOT / name).read_text(encoding="utf-8"), "python")
    for model in NEEDS.findall(source):
        assert (MODELS / model / "model_index.json").is_file(), (
            f"the built-in model {model} is missing; `sfumato train builtin {model}` makes it"
        )
    monkeypatch.chdir(tmp_path)
    exec(compile(source, name, "exec"), {"__name__": "example"})
    if name == "README.md":
        assert (tmp_path / "sphere.png").stat().st_size > 1000


def commands() -> Iterator[tuple[str, str]]:
    """Every `sfumato ...` of the pages, in blocks of shell and between backticks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shell = [
            line for part in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in part.splitlines()
        ]
        inline = re.findall(r"`(sfumato [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        for line in (*shell, *inline):
            if line.startswith("sfumato "):
                yield place(page), line


def test_there_are_commands_to_check() -> None:
    assert len(list(commands())) > 20


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_commands_parse(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command and its options exist and take such values; nothing is run."""
    for name in [n for n in os.environ if n.startswith("SFUMATO_")]:
        monkeypatch.delenv(name)
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "--help"]
    command = typer.main.get_command(app)
    context = command.make_context("sfumato", words)
    while subcommands := vars(command).get("commands"):
        if not (left := [*context._protected_args, *context.args]):
            assert command.invoke_without_command, f"{page}: {line}: a command is missing"
            return
        name, *rest = left
        assert name in subcommands, f"{page}: {line}: there is no {name!r}"
        command = subcommands[name]
        context = command.make_context(name, rest, parent=context)


def test_every_command_is_in_the_docs() -> None:
    told = {line.split()[1] for _, line in commands()}
    missing = set(vars(typer.main.get_command(app))["commands"]) - told
    assert not missing, f"no page shows how to use {', '.join(sorted(missing))}"


@pytest.mark.parametrize("task", REQUESTS)
def test_every_task_has_a_page(task: str) -> None:
    page = ROOT / "docs" / f"{task}.md"
    assert page.is_file()
    assert f"({task}.md)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
