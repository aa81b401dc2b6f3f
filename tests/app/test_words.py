"""Choices, wildcards, weights, LoRAs and learned words from the command line to the record and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture
def loras() -> Path:
    """A folder of two LoRAs for the tiny model."""
    folder = Path("loras")
    folder.mkdir()
    for seed, name in enumerate(("ink", "oil")):
        rng = torch.Generator().manual_seed(seed)
        start = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        state = {
            f"{start}.lora_A.weight": torch.randn(4, 16, generator=rng),
            f"{start}.lora_B.weight": torch.randn(16, 4, generator=rng),
        }
        save_file(state, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def wild() -> Path:
    folder = Path("wild")
    folder.mkdir()
    (folder / "colour.txt").write_text("red\nblue\ngreen\n")
    return folder


def record(path: str) -> dict:
    return json.loads(Image.open(path).info["sfumato"])


def pixels(path: str) -> bytes:
    return Image.open(path).tobytes()


def test_the_whole_syntax(generate, sfumato, loras):
    prompt = "a {red|blue} (cube:1.3) <lora:ink:0.8>"
    said = generate(prompt, "--seed", "5", "-o", "a.png")
    assert said.code == 0, said.err
    found = record("a.png")
    assert found["request"]["prompt"] == prompt
    assert found["resolved"]["prompt"] in ("a red (cube:1.3)", "a blue (cube:1.3)")
    assert [(row["name"], row["weight"], len(row["hash"])) for row in found["loras"]] == [("ink", 0.8, 64)]
    told = Image.open("a.png").info["parameters"]
    assert told.startswith(f"{found['resolved']['prompt']} <lora:ink:0.8>\n") and "Lora hashes" in told
    assert "byte for byte" in sfumato("replay", "a.png", "-o", "b.png").out
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    generate(found["resolved"]["prompt"], "--seed", "5", "--lora", "loras/ink.safetensors:0.8", "-o", "c.png")
    assert pixels("a.png") == pixels("c.png")
    generate(found["resolved"]["prompt"], "--seed", "5", "-o", "d.png")
    assert pixels("a.png") != pixels("d.png")
    generate(found["resolved"]["prompt"], "--seed", "5", "--lora", "ink:0", "-o", "e.png")
    assert pixels("d.png") == pixels("e.png")


def test_each_image_draws_from_its_own_seed(generate, sfumato, loras):
    prompt, names = "{a|b|c} {<lora:ink:1>|<lora:oil:1>|} {x|y}", []
    assert generate(prompt, "--seed", "3", "--count", "6", "--batch", "4", "-o", "a/").code == 0
    for i in range(6):
        found = record(f"a/000{i}.png")
        names.append((found["resolved"]["prompt"], tuple(row["name"] for row in found["loras"])))
        data = sfumato("replay", f"a/000{i}.png", "--check", "--json").data
        assert data["same_bytes"], (i, data)
    assert len({loras for _, loras in names}) > 1 and len({text for text, _ in names}) > 2
    generate(prompt, "--seed", "6", "-o", "one.png")
    assert record("one.png")["resolved"]["prompt"] == names[3][0]
    close = zip(pixels("a/0003.png"), pixels("one.png"), strict=True)
    assert max(abs(p - q) for p, q in close) <= 1


def test_wildcards_are_replayed_from_the_record(generate, sfumato, wild):
    generate("a __colour__ cube", "-n", "__colour__", "--wildcards", wild, "--seed", "1", "-o", "a.png")
    found = record("a.png")["resolved"]
    assert set(found["prompt"].split()) & {"red", "blue", "green"} and found["negative"] in (
        "red",
        "blue",
        "green",
    )
    (wild / "colour.txt").write_text("black\n")
    assert sfumato("replay", "a.png", "--check", "--json").data["same_bytes"]
    (wild / "colour.txt").unlink()
    assert sfumato("replay", "a.png", "--check", "--json").data["same_bytes"]
    assert generate("a __colour__ cube", "--wildcards", wild).code == 2
    assert generate("a __colour__", "-o", "b.png").code == 0
    assert record("b.png")["resolved"]["prompt"] == "a __colour__"


def test_another_lora_under_the_name_is_told(generate, sfumato, loras):
    generate("x <lora:ink:1>", "-o", "a.png")
    (loras / "ink.safetensors").write_bytes((loras / "oil.safetensors").read_bytes())
    said = sfumato("replay", "a.png", "--check")
    assert said.code == 1 and "loras: not the same as then" in said.err


def test_a_learned_word(generate, sfumato):
    save_file({"emb_params": torch.ones(2, 24)}, "cat.safetensors")
    generate("a <cat>", "--seed", "1", "--embedding", "cat.safetensors", "-o", "a.png")
    generate("a <cat>", "--seed", "1", "-o", "b.png")
    assert pixels("a.png") != pixels("b.png") and list(record("a.png")["embeddings"]) == ["<cat>"]
    assert sfumato("replay", "a.png", "--check", "--json").data["same_bytes"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["x <lora:inc:1>"], "nearest are ink"),
        (["x <lora:../ink:1>"], "is no name in a folder"),
        (["x <lora:ink:nan>"], "has no weight"),
        (["x <lora:ink:1>", "--lora", "ink"], "named twice"),
        (["x", "--lora", "gone.safetensors"], "there is no"),
        (["x", "--lora", "/gone.safetensors"], "does not exist"),
        (["x", "--lora", "ink:nan"], "must be at most"),
        (["x", "--lora", "notes.pt"], "can run code"),
        (["x", "-n", "<lora:ink:1>"], "acts on the whole picture"),
        (["(x:nan)"], "no weight"),
        (["x", "--wildcards", "nowhere"], "is no folder"),
        (["x", "--embedding", "gone.safetensors"], "no file"),
        (["x <lora:bad:1>"], "for SDXL"),
    ],
)
def test_bad_input(generate, loras, arguments, sentence):
    Path("notes.pt").write_bytes(b"PK")
    start = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    state = {f"{start}.lora_down.weight": torch.ones(2, 2048), f"{start}.lora_up.weight": torch.ones(64, 2)}
    save_file(state, loras / "bad.safetensors")
    said = generate(*arguments, "-o", "a.png")
    assert said.code == 2 and sentence in said.err and len(said.err.strip().splitlines()) == 1, said.err
    assert not Path("a.png").exists()
