"""`--technique swiftdiffusion` with LoRAs: what is recorded makes the same picture again, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sfumato.app.replay import read_record
from sfumato.pipelines.patches import _incoming as incoming

UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def loras(tmp_path: Path) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    for seed, (name, places) in enumerate({"ink": {UNET: 16}, "both": {UNET: 16, TEXT: 24}}.items()):
        rng, state = torch.Generator().manual_seed(seed), {}
        for place, width in places.items():
            state[f"{place}.lora_A.weight"] = torch.randn(4, width, generator=rng)
            state[f"{place}.lora_B.weight"] = torch.randn(width, 4, generator=rng)
        save_file(state, folder / f"{name}.safetensors")
    return folder


def techniques(file: str) -> Any:
    return read_record(Path(file))["request"]["techniques"]


def test_the_same_again(generate: Any, sfumato: Any) -> None:
    ask = ("-p", "a red cube", "--seed", "1", "--lora", "ink")
    assert generate(*ask, "-o", "at0.png", "--technique", "swiftdiffusion:at=0").code == 0
    assert generate(*ask, "-o", "at1.png", "--technique", "swiftdiffusion:at=1").code == 0
    assert generate(*ask, "-o", "live.png").code == 0
    assert generate(*ask[:4], "-o", "none.png").code == 0
    pixels = [Path(f"{name}.png").read_bytes() for name in ("at0", "at1", "none")]
    assert len(set(pixels)) == 3
    for name in ("at0", "at1"):
        assert sfumato("replay", f"{name}.png", "--check").code == 0
    late, live = (read_record(Path(f"{name}.png"))["loras"] for name in ("at1", "live"))
    assert late == live, "name, weight and hash"
    assert techniques("at1.png") == [{"id": "swiftdiffusion", "settings": {"at": 1}}]


def test_as_soon_as_ready_is_recorded(generate: Any, sfumato: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step at which they joined stands in the record; with it the bytes are the same."""
    ask = ("-p", "a red cube", "--seed", "1", "--lora", "ink", "--technique", "swiftdiffusion:at=null")
    with monkeypatch.context() as patch:  # never before they must
        patch.setattr(incoming.Incoming, "ready", False)
        assert generate(*ask, "--count", "2", "-o", "free.png").code == 0
    assert techniques("free-0001.png") == [{"id": "swiftdiffusion", "settings": {"at": 1}}]
    assert sfumato("replay", "free-0001.png", "--check").out == "the same, byte for byte\n"
    said = generate(*ask, "--parallel", "cfg=2")
    assert said.code == 2
    assert "lets each process choose its own step" in said.err


def test_what_is_left_out_is_told(generate: Any, sfumato: Any) -> None:
    said = generate("-p", "a cube <lora:both>", "--technique", "swiftdiffusion:at=1", "-o", "both.png")
    assert said.code == 0
    (note,) = read_record(Path("both.png"))["notes"]
    assert "both: 1 of its modules are left out by swiftdiffusion" in note
    assert TEXT.removeprefix("text_encoder.") in note
    assert sfumato("replay", "both.png", "--check").code == 0


def test_images_of_a_batch_with_loras_of_their_own(generate: Any) -> None:
    """They divide a batch, as each joins the whole network."""
    ask = (
        "-p",
        "a {<lora:ink>|red} cube",
        "--seed",
        "1",
        "--count",
        "6",
        "--technique",
        "swiftdiffusion:at=1",
    )
    assert generate(*ask, "--batch", "6", "-o", "many.png").code == 0
    assert generate(*ask, "-o", "one.png").code == 0
    acted = [bool(read_record(Path(f"many-{i:04d}.png"))["loras"]) for i in range(6)]
    assert True in acted
    assert acted == [bool(read_record(Path(f"one-{i:04d}.png"))["loras"]) for i in range(6)]


def test_refused(generate: Any, loras: Path, tmp_path: Path) -> None:
    ask = ("-p", "a cube", "--lora", "ink", "--technique")
    file = str(loras / "ink.safetensors")
    for technique, words in (
        (f'swiftdiffusion:loras=[["{file}",1]]', "takes its LoRAs from --lora"),
        ("swiftdiffusion:at=-1", "at must be 0 or more"),
        ("swiftdiffusion:at=2", "must be below the 2 steps"),
    ):
        said = generate(*ask, technique)
        assert said.code == 2, technique
        assert words in said.err
    assert generate("-p", "a cube", "--technique", f'swiftdiffusion:loras=[["{file}",1]]').code == 2
    (loras / "ink.safetensors").write_bytes(b"nothing")
    said = generate(*ask, "swiftdiffusion:at=1")
    assert said.code == 2
    assert "ink.safetensors" in said.err
