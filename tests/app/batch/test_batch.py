"""A batch from its file to its pictures: the images of single calls, fewer loads and encodings, nothing done twice."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import lines, pictures
from PIL import Image
from safetensors.torch import save_file
from sfumato.app import assembly
from sfumato.app.batch.manifest import digest
from sfumato.pipelines.families._common import Checkpoint

ROWS = (
    {"seed": 1},
    {"seed": 2, "prompt": "a {red|blue} mug"},
    {"seed": 3, "size": "64x32"},
    {"seed": 4, "negative": "blur", "sampler": "euler-ancestral"},
    {"seed": 5, "negative": "blur"},
    {"seed": 6, "count": 2},
)
ULP = 1
"""Of 255: sums of another batch size are added up in another order (oneDNN and MKL choose kernels by rows), which the
decoder's rounding to 8 bits may show."""


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def one_by_one(generate) -> dict[int, list[bytes]]:
    """The same rows by single calls."""
    found = {}
    for number, row in enumerate(ROWS, 1):
        given = {"prompt": "a cube", **row}
        options = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        assert generate(*options, "-o", f"single/{number}/").code == 0
        found[number] = [path.read_bytes() for path in sorted(Path("single", str(number)).glob("*.png"))]
    return found


def made(folder: str = "made") -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for line in sorted(lines(folder), key=lambda line: (line["row"], line["image"])):
        found.setdefault(line["row"], []).append(Path(folder, line["files"][0]["path"]).read_bytes())
    return found


def test_the_images_are_those_of_single_calls(batch, rows, generate):
    said = batch(rows(*ROWS), "--json")
    assert said.code == 0, said.err
    assert said.data["made"] == 7 and said.data["loads"] == 1
    single, together = one_by_one(generate), made()
    assert {number: len(found) for number, found in together.items()} == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 2}
    for number, found in together.items():
        for mine, alone in zip(found, single[number], strict=True):
            assert np.abs(pixels(mine) - pixels(alone)).max() <= ULP, number
    assert {line["together"] for line in lines()} == {1, 5}


def test_one_at_a_time_gives_the_very_bytes(batch, rows, generate):
    said = batch(rows(*ROWS), "--per-batch", "1")
    assert said.code == 0, said.err
    assert made() == one_by_one(generate)


def test_bits_do_not_depend_on_who_shares_the_batch(batch, rows, sfumato):
    """Of two sizes of a batch, and of its members, on one machine."""
    same = [{"seed": seed, "prompt": f"a cube {seed}"} for seed in range(8)]
    assert batch(rows(*same), "--per-batch", "4").code == 0
    assert sfumato("batch", "run", rows(*same[:4], name="b.jsonl"), "-o", "half").code == 0
    whole, half = made(), made("half")
    for number, found in half.items():
        assert np.abs(pixels(found[0]) - pixels(whole[number][0])).max() <= ULP


def test_each_prompt_is_encoded_once_and_the_model_is_opened_once(batch, rows, monkeypatch):
    encoded, opened = [], []
    encode, open_model = Checkpoint.encode, assembly.open_model

    def counted(self, prompts, *, key):
        encoded.extend((key, prompt) for prompt in prompts if key != "probe")
        return encode(self, prompts, key=key)

    monkeypatch.setattr(Checkpoint, "encode", counted)
    monkeypatch.setattr(assembly, "open_model", lambda *a, **k: opened.append(a) or open_model(*a, **k))
    asked = [
        {"seed": seed, "prompt": prompt, "size": size, "guidance": 3}
        for seed in range(3)
        for prompt in ("a cube", "a mug")
        for size in ("64x64", "64x32")
    ]
    name = rows(*asked)
    plan = batch(name, "--dry-run", "--json").data
    assert (plan["loads"], plan["encodings"], plan["groups"], plan["units"]) == (1, 3, 2, 12)
    assert plan["saved"] == {"loads": 11, "loads_in_order": 0, "encodings": 21}
    assert not Path("made").exists() and encoded == []
    opened.clear()
    said = batch(name, "--json")
    assert said.code == 0, said.err
    assert (said.data["loads"], said.data["encodings"]) == (1, 3) == (len(opened), len(encoded))
    assert sorted(encoded) == [("neg", ""), ("pos", "a cube"), ("pos", "a mug")]


def test_rows_of_two_models_and_of_adapters_are_sorted(batch, rows, tiny, tmp_path):
    import shutil

    other = str(shutil.copytree(tiny, tmp_path / "other"))
    start = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    rng = torch.Generator().manual_seed(0)
    state = {f"{start}.lora_A.weight": torch.randn(4, 16, generator=rng)}
    save_file(state | {f"{start}.lora_B.weight": torch.randn(16, 4, generator=rng)}, "ink.safetensors")
    ink = {"loras": ["ink.safetensors:0.8"]}
    asked = [{"seed": 1, **ink}, {"seed": 2}, {"seed": 3, "model": other}, {"seed": 4, **ink}, {"seed": 5}]
    name = rows(*asked, {"seed": 6, "loras": ["ink.safetensors:0.3"]}, {"seed": 7, "model": other})
    plan = batch(name, "--dry-run", "--json").data
    order = [[unit["row"] for unit in group] for group in plan["order"]]
    assert order == [[2, 5], [1, 4], [6], [3, 7]]
    said = batch(name, "--json", "--per-batch", "1")
    assert said.code == 0, said.err
    assert said.data["loads"] == plan["loads"] == 3, "two for the check, and the other model after the first"
    assert plan["saved"]["loads"] == 4


def test_lora_rows_have_the_bytes_of_single_calls(batch, rows, generate):
    start = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    rng = torch.Generator().manual_seed(0)
    state = {f"{start}.lora_A.weight": torch.randn(4, 16, generator=rng)}
    save_file(state | {f"{start}.lora_B.weight": torch.randn(16, 4, generator=rng)}, "ink.safetensors")
    texts = ("ink.safetensors:0.8", "ink.safetensors:0.3")
    name = rows({"seed": 1, "loras": [texts[0]]}, {"seed": 2}, {"seed": 1, "loras": [texts[1]]})
    assert batch(name, "--per-batch", "1").code == 0
    for number, options in ((1, ("--lora", texts[0])), (3, ("--lora", texts[1]))):
        generate("a cube", "--seed", "1", *options, "-o", "one.png")
        assert pictures()[number] == Path("one.png").read_bytes()
    generate("a cube", "--seed", "2", "-o", "one.png")
    assert pictures()[2] == Path("one.png").read_bytes()


def test_what_is_done_is_not_done_again(batch, rows):
    first = [{"seed": seed} for seed in (1, 2, 3)]
    assert batch(rows(*first)).code == 0
    before, count = {line["id"]: line["files"] for line in lines()}, len(lines())
    said = batch(rows(*first), "--json")
    assert (said.data["made"], said.data["done_before"], said.data["loads"]) == (0, 3, 0)
    said = batch(rows({"seed": 9}, *first), "--json")
    assert (said.code, said.data["made"], said.data["done_before"]) == (0, 1, 3)
    assert len(lines()) == count + 1
    Path("made", lines()[0]["files"][0]["path"]).write_bytes(b"damaged")
    said = batch(rows(*first), "--json")
    assert said.data["made"] == 1
    after = {line["id"]: line["files"] for line in lines()}
    assert before.keys() < after.keys()
    for files in after.values():
        assert digest(Path("made", files[0]["path"]).read_bytes()) == files[0]["sha256"]


def test_a_torn_line_counts_for_nothing(batch, rows):
    name = rows({"seed": 1}, {"seed": 2, "size": "64x32"})
    assert batch(name).code == 0
    file = Path("made/manifest.jsonl")
    whole = file.read_bytes()
    for cut in (1, 40, len(whole) // 2 + 60):
        file.write_bytes(whole[:-cut])
        said = batch(name, "--json")
        assert said.code == 0 and said.data["made"] in ((0,) if cut == 1 else (1, 2)), cut
        assert batch(name, "--json").data["made"] == 0


def test_nothing_is_started_if_a_row_is_bad(batch, rows, tiny):
    said = batch(rows({"seed": 1}, {"steps": 0}, {"size": "63x64"}, {"loras": ["none"]}))
    assert said.code == 2 and "row 2: steps: 0" in said.err and not Path("made").exists()
    said = batch(rows({"seed": 1}, {"size": "63x64"}, {"loras": ["none"]}, {"sampler": "dimm"}))
    assert said.code == 2 and not Path("made").exists()
    assert [line.partition(":")[0] for line in said.err.splitlines()] == ["row 2", "row 3", "row 4"]
    assert "63" in said.err and "did you mean" in said.err and "'none'" in said.err


def test_keep_going_makes_the_good_ones(batch, rows):
    Path("broken.safetensors").write_bytes(b"no weights at all")
    asked = [{"seed": 1}, {"steps": 0}, {"size": "63x64"}, {"loras": ["broken.safetensors"]}, {"seed": 2}]
    said = batch(rows(*asked), "--keep-going", "--json")
    assert said.code == 1, said.err
    assert (said.data["made"], said.data["failed"]) == (2, 3)
    failed = {line["row"]: line["error"] for line in lines() if line["state"] == "failed"}
    assert failed.keys() == {2, 3, 4} and "steps: 0" in failed[2] and "broken.safetensors" in failed[4]
    report = Path("made/report.html").read_text()
    assert "steps: 0" in report and "2 of 5 made" in report
    said = batch(rows(*asked), "--keep-going", "--json")
    assert said.code == 1 and (said.data["made"], said.data["done_before"]) == (0, 2)


def test_without_it_the_first_that_fails_ends_the_run(batch, rows):
    Path("broken.safetensors").write_bytes(b"no weights at all")
    name = rows({"seed": 1, "loras": ["broken.safetensors"]}, {"seed": 2}, {"seed": 3, "embeddings": []})
    said = batch(name, "--json")
    assert said.code == 1 and said.data["failed"] == 1 and "row 1: " in said.err
    assert said.data["made"] == 2, "plain rows come before adapted ones"


def test_what_spoils_a_batch_is_found(batch, rows, monkeypatch):
    """One picture of a batch has numbers that are none: the others are made alone, and say so."""
    embed = Checkpoint.encode

    def poisoned(self, prompts, *, key):
        cond = embed(self, prompts, key=key)
        if "poison" in prompts[0]:
            cond.embeds["text"].fill_(float("nan"))
        return cond

    monkeypatch.setattr(Checkpoint, "encode", poisoned)
    said = batch(rows({"seed": 1}, {"seed": 2, "prompt": "poison"}, {"seed": 3}), "--keep-going", "--json")
    assert said.code == 1 and (said.data["made"], said.data["failed"]) == (2, 1), said.err
    (failed,) = [line for line in lines() if line["state"] == "failed"]
    assert failed["row"] == 2 and "NaN" in failed["error"]
    assert all("made alone" in line["notes"][0] for line in lines() if line["state"] == "done")


def test_other_tasks_share_the_file(batch, rows):
    Path("a.yaml").write_text(
        "rows:\n- {task: world, prompt: a red cube, seed: 3, size: 32x32, maps: [rgb, depth]}\n"
        "- {task: world, seed: 4, size: 32x32, maps: [rgb]}\n"
    )
    said = batch("a.yaml", "--json")
    assert said.code == 0 and said.data["loads"] == 0, said.err
    first = lines()[0]
    assert [Path(file["path"]).name for file in first["files"]] == ["rgb.png", "depth.png", "scene.json"]
    said = batch(rows({"task": "world", "prompt": "a red unicorn", "seed": 1}))
    assert said.code == 2 and "row 1: " in said.err


def test_a_second_run_into_the_folder_is_refused(batch, rows):
    from sfumato.app.batch.manifest import only_one

    Path("made").mkdir()
    with only_one(Path("made")):
        said = batch(rows({"seed": 1}))
    assert said.code == 1 and "another run works in made" in said.err


def test_replay_knows_that_a_picture_was_one_of_several(batch, rows, sfumato):
    assert batch(rows({"seed": 1}, {"seed": 2}, {"seed": 3, "size": "64x32"})).code == 0
    found = {line["row"]: Path("made", line["files"][0]["path"]) for line in lines()}
    assert "byte for byte" in sfumato("replay", found[3], "--check").out
    said = sfumato("replay", found[1], "--check", "--json")
    assert said.data["max_difference"] <= ULP
    assert any("sampled with 1 others then" in text for text in said.data["differences"])


def test_the_output_folder_is_the_same_each_time(sfumato, rows):
    assert sfumato("batch", "run", rows({"seed": 1}, name="mugs.jsonl")).code == 0
    assert len(lines("out/mugs")) == 1
    assert sfumato("batch", "run", "mugs.jsonl", "--json").data["done_before"] == 1


def test_an_address_without_a_cluster_is_refused(batch, rows):
    said = batch(rows({"seed": 1}), "--address", "x:1")
    assert said.code == 2 and "--engine ray" in said.err


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b"])
def test_texts_in_the_report_are_escaped(batch, rows, text):
    assert batch(rows({"seed": 1, "prompt": text}, {"steps": text}), "--keep-going").code == 1
    report = Path("made/report.html").read_text()
    assert text not in report and "<script" not in report and "<img src=x" not in report
    assert report.count("<tr>") == 3


def test_the_contact_sheet_has_every_picture(batch, rows):
    assert batch(rows(*({"seed": seed} for seed in range(5)))).code == 0
    sheet = Image.open("made/contact-sheet.png")
    assert sheet.width > 3 * 250 and sheet.height > 250
    manifest = json.loads(Path("made/manifest.jsonl").read_text().splitlines()[0])
    assert manifest["together"] == 5
