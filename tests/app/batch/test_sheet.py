"""Files of rows: every format means the same, and what is wrong with one is told in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sfumato.app.batch.rows import rows_of
from sfumato.app.batch.sheet import Entry, read_sheet
from sfumato.pipelines.errors import SfumatoError


def written(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def requests(name: str) -> list[dict]:
    sheet = rows_of(read_sheet(name), None)
    assert not sheet.bad, sheet.bad
    return [row.request.model_dump() for row in sheet.rows]


def test_the_three_formats_mean_the_same():
    csv = 'prompt,seed,techniques,size\n"a cube, red",1,apg;cfg-zero,64x32\n\n,,,\nb,2,,\n'
    lines = [
        {"prompt": "a cube, red", "seed": 1, "techniques": ["apg", "cfg-zero"], "size": "64x32"},
        {"prompt": "b", "seed": 2},
    ]
    one = requests(written("a.csv", "\ufeff" + csv))
    assert one == requests(written("a.jsonl", "\n\n".join(map(json.dumps, lines)) + "\n"))
    assert one == requests(written("a.yaml", json.dumps(lines)))
    assert (one[0]["width"], one[0]["height"], one[0]["prompt"]) == (64, 32, "a cube, red")
    assert [technique["id"] for technique in one[0]["techniques"]] == ["apg", "cfg-zero"]


def test_a_matrix_makes_every_combination_of_each_row():
    name = written(
        "a.yaml",
        """
defaults: {steps: 3, size: 64x64}
rows:
  - prompt: a cube
  - {prompt: a mug, steps: 9}
matrix:
  seed: [1, 2]
  guidance: [1.5, 4]
""",
    )
    found = requests(name)
    assert [(r["prompt"], r["seed"], r["guidance"], r["steps"], r["width"]) for r in found] == [
        (prompt, seed, guidance, steps, 64)
        for prompt, steps in (("a cube", 3), ("a mug", 9))
        for seed in (1, 2)
        for guidance in (1.5, 4)
    ]
    assert len(requests(written("b.yaml", "matrix: {prompt: [a, b], seed: [1, 2, 3]}"))) == 6


def test_rows_of_several_tasks():
    name = written("a.csv", "task,prompt,seed,maps\ngenerate,a,1,\nworld,a red cube,2,depth;ids\n,b,3,\n")
    sheet = rows_of(read_sheet(name), None)
    assert [row.request.task for row in sheet.rows] == ["generate", "world", "generate"]
    assert dict(sheet.rows[1].request)["maps"] == ("depth", "ids")


def test_seeds_are_drawn_from_the_rows_and_stay():
    entries = [Entry(1, {"prompt": "a"}), Entry(2, {"prompt": "a"}), Entry(3, {"prompt": "b"})]
    first, again = rows_of(entries, None), rows_of(list(reversed(entries)), None)
    seeds = {row.id: dict(row.request)["seed"] for row in first.rows}
    assert len(set(seeds.values())) == 3
    assert seeds == {row.id: dict(row.request)["seed"] for row in again.rows}


def test_the_same_twice_is_made_once():
    sheet = rows_of([Entry(1, {"prompt": "a", "seed": 1}), Entry(2, {"prompt": "a", "seed": "1"})], None)
    assert len(sheet.rows) == 1 and sheet.twice == 1


def test_the_environment_holds_for_rows_too(monkeypatch):
    monkeypatch.setenv("SFUMATO_STEPS", "7")
    sheet = rows_of([Entry(1, {"prompt": "a"}), Entry(2, {"prompt": "a", "steps": 3})], None)
    assert [dict(row.request)["steps"] for row in sheet.rows] == [7, 3]


def test_every_bad_row_is_told_with_field_value_and_remedy():
    rows = [
        {"prompt": "a", "steps": 0},
        {"prompt": "a", "stepz": 3},
        {"seed": 1},
        {"prompt": "a", "size": "big"},
        {"task": "paint", "prompt": "a"},
        {"prompt": "fine"},
        {"prompt": "a", "count": "many"},
    ]
    bad = rows_of([Entry(at, row) for at, row in enumerate(rows, 1)], None).bad
    told = [str(one) for one in bad]
    assert [line.partition(":")[0] for line in told] == [f"row {at}" for at in (1, 2, 3, 4, 5, 7)]
    for line, words in zip(
        told,
        (
            ("steps: 0", "at least 1"),
            ("stepz: 3", "did you mean 'steps'"),
            ("prompt", "is needed"),
            ("size: 'big'", "as in 512x384"),
            ("task: 'paint'", "known are generate, world"),
            ("count: 'many'", "whole number"),
        ),
        strict=True,
    ):
        assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "x", "give a .csv, .jsonl or .yaml"),
        ("a.csv", "", "has no rows"),
        ("a.csv", "prompt\n", "has no rows"),
        ("a.csv", "promt\na\n", "column: 'promt' is no field of a request; did you mean 'prompt'"),
        ("a.csv", "prompt,prompt\na,b\n", "is there twice"),
        ("a.csv", "prompt\na,b\n", "line: 2 has 2 cells for 1 columns"),
        ("a.csv", 'prompt\n"a', "is no valid CSV"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"', "line: 2 of a.jsonl is no valid JSON"),
        ("a.jsonl", "[1]", "must be a table"),
        ("a.yaml", "rows: [", "is no valid YAML"),
        ("a.yaml", "just text", "must hold a list of rows"),
        ("a.yaml", "row: []", "known are defaults, rows, matrix"),
        ("a.yaml", "matrix: {seed: 3}", "must be a list"),
        ("a.yaml", "matrix: {seed: []}", "a value or more"),
        ("a.yaml", f"matrix: {{seed: {list(range(400))}, steps: {list(range(1, 400))}}}", "159600 rows"),
        ("a.yaml", "", "must hold"),
    ],
)
def test_what_is_wrong_with_a_file(name, text, sentence):
    with pytest.raises(SfumatoError) as caught:
        read_sheet(written(name, text))
    assert sentence in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(SfumatoError, match=r"none\.csv.*can't be read"):
        read_sheet("none.csv")
    Path("a.csv").write_bytes(b"prompt\n\xff\xfe\n")
    with pytest.raises(SfumatoError, match="UTF-8"):
        read_sheet("a.csv")
