"""`sfumato generate`: where files go, what they say, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image


def test_dated_folder_by_default(generate):
    first, second = generate("a red cube"), generate("a red cube")
    assert first.code == second.code == 0
    a, b = Path(first.out.strip()), Path(second.out.strip())
    assert a.parts[0] == "out" and a.name == b.name == "0000.png" and a != b
    assert Image.open(a).size == (64, 64)


def test_named_file_and_index_for_several(generate):
    assert generate("x", "-o", "a/b.png").out.split() == ["a/b.png"]
    assert generate("x", "-o", "c.webp", "--count", "2").out.split() == ["c-0000.webp", "c-0001.webp"]
    assert Image.open("c-0001.webp").format == "WEBP"


def test_folder_goes_on_counting(generate):
    assert generate("x", "-o", "d/").out.split() == ["d/0000.png"]
    assert generate("x", "-o", "d", "--count", "2").out.split() == ["d/0001.png", "d/0002.png"]


def test_seeds_count_up_and_batches_agree(generate):
    data = generate("x", "--seed", "7", "--count", "3", "--json", "-o", "a/").data
    assert [f["seed"] for f in data["files"]] == [7, 8, 9]
    generate("x", "--seed", "8", "-o", "one.png")
    generate("x", "--seed", "7", "--count", "3", "--batch", "3", "-o", "b/")
    assert Image.open("a/0001.png").tobytes() == Image.open("one.png").tobytes()
    close = zip(Image.open("a/0001.png").tobytes(), Image.open("b/0001.png").tobytes(), strict=True)
    assert max(abs(p - q) for p, q in close) <= 1


def test_random_seed_is_recorded(generate):
    data = generate("x", "--json", "-o", "a.png").data
    assert data["request"]["seed"] == data["files"][0]["seed"]
    generate("x", "--seed", str(data["request"]["seed"]), "-o", "b.png")
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()


def test_prompt_as_option(generate):
    assert generate("-p", "a cube", "--json", "-o", "a.png").data["request"]["prompt"] == "a cube"
    said = generate("one", "-p", "two")
    assert said.code == 2 and said.err.startswith("prompt: ")


def test_prompt_is_needed_but_may_be_empty(generate):
    assert generate().code == 2
    said = generate("", "-o", "a.png")
    assert said.code == 0 and "prompt: empty" in said.err


def test_long_prompt_is_cut_and_says_so(generate):
    said = generate("cube " * 10000, "-o", "a.png", "--json")
    assert said.code == 0 and "left out" in said.err and any("left out" in n for n in said.data["notes"])
    assert generate("cube " * 10000, "-o", "a.jpg").code == 2


def test_dry_run_writes_nothing(generate, own_folder):
    said = generate("x", "--dry-run", "-o", "new/a.png")
    assert said.code == 0 and said.data["request"]["seed"] is not None
    assert said.data["plan"]["steps"] == 2 and said.data["plan"]["peak_bytes"] > 0
    assert said.data["files"] == ["new/a.png"] and list(own_folder.iterdir()) == []


def test_sidecar_has_the_timings(generate):
    generate("x", "-o", "a.png", "--sidecar")
    assert json.loads(Path("a.json").read_text())["seconds"]["sample"] >= 0


def test_preview_is_gone_at_the_end(generate):
    assert generate("x", "-o", "a.png", "--steps", "4", "--preview-every", "1").code == 0
    assert [p.name for p in Path().iterdir()] == ["a.png"]


def test_techniques_reach_the_run(generate):
    plain = generate("x", "--seed", "1", "-o", "a.png", "--guidance", "5")
    off = generate("x", "--seed", "1", "-o", "c.png", "-t", "cfg:scale=1")
    none = generate("x", "--seed", "1", "-o", "d.png", "-t", "none")
    assert plain.code == off.code == none.code == 0, (plain, off, none)
    assert Image.open("c.png").tobytes() == Image.open("d.png").tobytes() != Image.open("a.png").tobytes()


def test_scale_of_a_guidance(generate):
    """Its own setting, else --guidance, else its own default; the record tells which."""
    for arguments, scale in (([], 0.6), (["--guidance", "1.5"], 1.5)):
        data = generate("x", "-t", "cfg++", *arguments, "--json", "-o", "a.png").data
        assert data["request"]["techniques"][0]["settings"]["scale"] == data["request"]["guidance"] == scale
    data = generate("x", "-t", "cfg:scale=3", "--guidance", "5", "--json", "-o", "a.png").data
    assert data["request"]["guidance"] == 3


def test_sampler_alias(generate):
    data = generate("x", "--sampler", "euler", "--json", "-o", "a.png").data
    assert data["request"]["sampler"] == {"id": "ddim", "settings": {}}


BAD = [
    (["--steps", "-3"], "steps: '-3' must be at least 1"),
    (["--steps", "two"], "steps: 'two' must be a whole number"),
    (["--guidance", "nan"], "guidance: 'nan' must be a finite number"),
    (["--cfg-scale", "inf"], "guidance: 'inf' must be a finite number"),
    (["--size", "64"], ""),
    (["--size", "big"], "size: 'big' is not WxH"),
    (["-W", "63"], "width"),
    (["--seed", "-1"], "seed: '-1' must be at least 0"),
    (["--count", "0"], "count: '0' must be at least 1"),
    (["--sampler", "dpmpp-2n"], "did you mean 'dpmpp-2m'"),
    (["--sampler", "cfg"], "sampler: 'cfg' is a guidance, not a sampler"),
    (["--sampler", "ddim:eto=1"], "did you mean 'eta'"),
    (["--sampler", "ddim:eta=9"], "eta must be in 0..1"),
    (["--sampler", "ddim:eta=much"], "must be a number"),
    (["--sampler", "ddim:eta"], "is not key=value"),
    (["--schedule", "karas"], "did you mean 'karras'"),
    (["-t", "cgf"], "did you mean 'cfg'"),
    (["-t", "keep-known"], "needs"),
    (["-t", "sds"], "it is for 3D"),
    (["-t", "ddim"], "give it as --sampler"),
    (["-t", "cfg", "-t", "cfg++"], "two guidances"),
    (["-t", "cfg++", "--guidance", "7"], "scale must be in 0..2"),
    (["--dtype", "float8"], "dtype: 'float8' must be one of"),
    (["--device", "cuda"], "device"),
    (["--device", "toaster"], "device"),
    (["-o", "a.gif"], "output: 'a.gif' has no known image suffix"),
    (["-o", "/proc/nowhere/a.png"], "can't be written to"),
    (["-m", "still-lief"], "still-lief"),
    (["-m", "no/such/folder"], "no/such/folder"),
    (["-c", "missing.yaml"], "config: 'missing.yaml' is not a file"),
    (["--resume", "missing.resume"], "resume: 'missing.resume' is not a file"),
    (["--no-such-option"], "--no-such-option"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence(generate, own_folder, arguments, sentence):
    said = generate("x", *arguments)
    if not sentence:
        assert said.code == 0
        return
    assert said.code == 2 and said.out == ""
    assert sentence in said.err and len(said.err.strip().splitlines()) == 1
    assert [p for p in own_folder.rglob("*") if p.is_file()] == []


def test_several_faults_are_told_at_once(generate):
    said = generate("x", "--steps", "0", "--guidance", "-1")
    assert said.code == 2 and len(said.err.strip().splitlines()) == 2


def test_verbose_adds_the_traceback(tiny, capsys):
    from sfumato.app import cli

    assert cli.main(["generate", "x", "-m", str(tiny), "--steps", "0", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
