"""Writes what the docs derive from elsewhere: the techniques from the catalogue, the numbers from benchmarks/results/.

`python docs/build.py` writes, `--check` only compares (exit code 1 if a page is out of date). Pages hold generated
blocks between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sfumato.app.catalogue import Entry, catalogue, doc_labels

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KINDS = {
    "sampler": "Samplers",
    "schedule": "Schedules",
    "guidance": "Guidance",
    "wrap": "Wraps",
    "patch": "Patches",
    "convert": "Converts",
    "distill": "Score distillation",
    "family": "Model families",
    "recipe": "Training",
    "system": "Systems",
}
FIELDS = ("Use", "Shapes", "Units and ranges", "Cost", "Neutral", "Errors", "Differs")
MODELS = ("still-life", "still-life-unet")
PLACE = re.compile(r"\{(\w)\|([^{}|]+)(?:\|(low|high))?\}")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def pages() -> dict[Path, str]:
    """Path -> what the page should hold now."""
    results = read_results()
    blocks = {
        ROOT / "README.md": {"techniques": overview(), "numbers": headlines(results)},
        ROOT / "docs" / "techniques.md": {"techniques": tables()},
        ROOT / "docs" / "quantisation.md": {
            "methods": worth("quantisation", "quantisation-gptq"),
            "mixed": worth("mixdq"),
        },
        ROOT / "docs" / "performance.md": {"numbers": "\n\n".join(map(section, results)) or NOTHING_YET},
    }
    found = {}
    for path, parts in blocks.items():
        text = path.read_text(encoding="utf-8")
        for name, body in parts.items():
            text = between(text, name, body)
        found[path] = text
    found[ROOT / "docs" / "methods.md"] = methods()
    return found


NOTHING_YET = "Not measured yet: `make bench` measures on the machine it runs on."


def between(text: str, name: str, body: str) -> str:
    """The text with the block NAME filled with `body`."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"the page needs {begin} and {end} once each")
    return f"{text.partition(begin)[0]}{begin}\n{body}\n{end}{text.partition(end)[2]}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def by_kind() -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {kind: [] for kind in KINDS}
    for entry in catalogue().values():
        found[entry.kind].append(entry)
    return {kind: entries for kind, entries in found.items() if entries}


def anchor(entry: Entry) -> str:
    """Where the entry stands in methods.md. Of the file, since ids may hold signs that addresses can't."""
    return f"{entry.kind}-{Path(entry.file).stem}"


def linked(text: str) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def overview() -> str:
    """One row per kind."""
    rows = []
    for kind, entries in by_kind().items():
        names = ", ".join(f"[{e.id}](docs/methods.md#{anchor(e)})" for e in entries)
        rows.append((KINDS[kind], names))
    return table(("kind", "in the catalogue"), rows)


def tables() -> str:
    """One row per technique, kind by kind."""
    parts = []
    for kind, entries in by_kind().items():
        rows = [
            (
                f"[{e.id}](methods.md#{anchor(e)})",
                e.summary,
                ", ".join(e.tasks),
                doc_labels(e.doc).get("Cost", ""),
            )
            for e in entries
        ]
        parts.append(f"## {KINDS[kind]}\n\n{table(('id', 'what it does', 'for', 'cost'), rows)}")
    return "\n\n".join(parts)


def methods() -> str:
    """The whole of methods.md."""
    head = (
        "# Methods\n\n"
        "Every technique of the catalogue: its paper, what it costs, how it differs, and its effect as measured here\n"
        "on the Still Life world. Written by `make docs` from the docstrings; edit those.\n"
    )
    parts = [f"## {KINDS[k]}\n\n" + "\n\n".join(map(method, entries)) for k, entries in by_kind().items()]
    return head + "\n" + "\n\n".join(parts) + "\n"


def method(entry: Entry) -> str:
    labels = doc_labels(entry.doc)
    lines = [
        f'<a id="{anchor(entry)}"></a>',
        "",
        f"### {entry.id}",
        "",
        f"{entry.summary[0].upper()}{entry.summary[1:]}.",
        "",
    ]
    if entry.aliases:
        stand = {alias: f" (`{entry.id}:{setting}={value}`)" for alias, setting, value in entry.presets}
        lines.append(f"- *Also called:* {', '.join(name + stand.get(name, '') for name in entry.aliases)}")
    if entry.paper:
        lines.append(f"- *Paper:* {linked(entry.paper)}")
    lines += [f"- *{name}:* {linked(labels[name])}" for name in FIELDS if labels.get(name)]
    if entry.kind != "family":
        lines.append(f"- *Effect:* {effect(entry.id)}")
    lines += [f"- *Effect of {name}:* {effect(name)}" for name in entry.aliases if name in effects()]
    lines.append(f"- *File:* [{entry.file}](../{entry.file})")
    if entry.settings and entry.kind != "family":
        rows = [
            (f"`{s.name}`", f"`{s.type}`", "" if s.default is ... else f"`{s.default!r}`", s.help)
            for s in entry.settings
        ]
        lines += ["", table(("setting", "type", "default", "meaning"), rows)]
    return "\n".join(lines)


def effect(id: str) -> str:
    """What was measured, and what the paper claims: of docs/effects.toml, or benchmarks/results/effects/<id>.json."""
    file = RESULTS / "effects" / f"{id}.json"
    if id in effects():
        found = from_rows(id, effects()[id])
    elif file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        return "not measured yet"
    claim = f"claimed: {found['claim']}" if found.get("claim") else ""
    source = "; ".join(filter(None, [claim, found["command"] and f"`{found['command']}`"]))
    return found["measured"] + (f" ({source})" if source else "")


@cache
def effects() -> dict[str, dict[str, Any]]:
    return tomllib.loads((ROOT / "docs" / "effects.toml").read_text(encoding="utf-8"))


def from_rows(id: str, told: dict[str, Any]) -> dict[str, str]:
    """An effect whose `{letter|row}`, or `{letter|row|high}`, is what the results hold under that row's name."""
    sources = {
        letter: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        for letter, name in told.get("from", {}).items()
    }

    def value(match: re.Match[str]) -> str:
        letter, what, which = match[1], match[2], match[3] or "median"
        found = [r for r in sources.get(letter, {"rows": []})["rows"] if r["what"] == what]
        if len(found) != 1:
            raise SystemExit(f"docs/effects.toml: {id}: no row {what!r} in {letter!r}")
        return number(found[0][which])

    measured = PLACE.sub(value, told["measured"])
    commands = dict.fromkeys(source["command"] for source in sources.values())
    return {"claim": told.get("claim", ""), "measured": measured, "command": "`, `".join(commands)}


def worth(*files: str) -> str:
    """What each way of packing is worth on both built-in models: decibels, bytes, time, and what the judge reads."""
    names: dict[str, None] = {}
    found: dict[tuple[str, str, str], str] = {}
    for model in MODELS:
        for file in files:
            for r in json.loads((RESULTS / f"{file}-{model}.json").read_text(encoding="utf-8"))["rows"]:
                name, _, what = r["what"].rpartition(": ")
                names[name] = None
                found[name, what, model] = number(r["median"])
    columns = {
        "dB": "PSNR",
        "worst tenth, dB": "PSNR of the worst tenth",
        "bytes": "bytes / full precision's",
        "time": "a picture's time / full precision's",
        "all right": "all right",
    }
    rows = [
        [
            name,
            *(" / ".join(found.get((name, what, m), "") or "-" for m in MODELS) for what in columns.values()),
        ]
        for name in names
    ]
    return table([" / ".join(MODELS), *columns], rows)


def read_results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]


def section(result: dict[str, Any]) -> str:
    """One benchmark: its machine, its command, its rows."""
    rows = [
        (
            r["what"],
            number(r["median"]),
            f"{number(r['low'])} to {number(r['high'])}",
            r["unit"],
            str(r["n"]),
            r["bar"],
        )
        for r in result["rows"]
    ]
    body = table(("what", "median", "spread", "unit", "times", "bar"), rows)
    return f"## {result['title']}\n\n{machines([result])[0]}\n\n`{result['command']}`\n\n{body}"


def headlines(results: list[dict[str, Any]]) -> str:
    """The rows that the README shows."""
    rows = [
        (r["what"], f"{number(r['median'])} {r['unit']}", f"{number(r['low'])} to {number(r['high'])}")
        for result in results
        for r in result["rows"]
        if r["headline"]
    ]
    if not rows:
        return NOTHING_YET
    return "\n\n".join([table(("what", "median", "spread"), rows), *machines(results)])


def machines(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each machine, with the loads at which it was."""
    loads: dict[str, list[float]] = {}
    for about in (result["machine"] for result in results):
        versions = f"Python {about['python']}, torch {about['torch']}"
        cores = f"{about['cores']} cores, {about['threads']} threads"
        loads.setdefault(f"{about['gpu'] or about['cpu']}, {cores}, {versions}", []).append(about["load"])
    return [
        f"Measured on {where}; load before the start {told(min(seen), max(seen))}."
        for where, seen in sorted(loads.items())
    ]


def told(low: float, high: float) -> str:
    return f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}"


def number(value: float) -> str:
    """Three significant digits."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated parts of the docs.")
    parser.add_argument(
        "--check", action="store_true", help="only compare; exit code 1 if a page is out of date"
    )
    check = parser.parse_args().check
    old = [p for p, text in pages().items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    for path in old:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(pages()[path], encoding="utf-8")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
