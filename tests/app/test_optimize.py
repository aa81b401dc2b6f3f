"""The dial `optimize`: the techniques that it stands for, what it leaves out, and converts on the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sfumato.app.levels import Facts, choice
from sfumato.app.optimize import facts, opened
from sfumato.app.requests import GenerateRequest
from sfumato.app.shelf import Shelf
from sfumato.kernels.native.around import available
from sfumato.kernels.quant.int8 import available as int8
from sfumato.pipelines.converts.weight_only import WeightOnly
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.quantised import quantise
from sfumato.pipelines.reuse_curve import Point, ReuseCurve

SHAPES = {"A": (4, 16), "B": (16, 4)}
ASK = ("--size", "64x64", "--steps", "3", "--seed", "1", "-p", "a cube")
LEVELS = {
    level: choice(level, Facts("cpu", "float32")).techniques
    for level in ("exact", "balanced", "fast", "small")
}
native = pytest.mark.skipif(available() is not None, reason=str(available()))


def pixels(name: str) -> bytes:
    return Image.open(name).tobytes()


@native
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_the_techniques_it_stands_for(sfumato: Any, tiny: Path, level: str) -> None:
    said = sfumato("generate", *ASK, "-m", tiny, "--optimize", level, "-o", "level.png", "--json")
    assert said.code == 0, said.err
    told = said.data["request"]
    assert told["optimize"] == "off" and [t["id"] for t in told["techniques"]] == [
        name.partition(":")[0] for name in LEVELS[level]
    ]
    by_hand = [part for name in LEVELS[level] for part in ("-t", name)]
    assert sfumato("generate", *ASK, "-m", tiny, *by_hand, "-o", "hand.png").code == 0
    assert sfumato("replay", "level.png", "-o", "again.png").code == 0
    assert pixels("level.png") == pixels("hand.png") == pixels("again.png")
    assert ("nothing is reused across steps" in said.err) == (level == "fast")


@native
def test_exact_is_exact_and_off_is_absent(sfumato: Any, tiny: Path) -> None:
    for name, given in (("plain", ()), ("off", ("--optimize", "off")), ("exact", ("--optimize", "exact"))):
        assert sfumato("generate", *ASK, "-m", tiny, *given, "-o", f"{name}.png").code == 0
    assert pixels("off.png") == pixels("plain.png")
    far = max(abs(a - b) for a, b in zip(pixels("exact.png"), pixels("plain.png"), strict=True))
    assert far <= 1


def test_fast_takes_what_was_measured(sfumato: Any, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    ReuseCurve(3, (Point("deepcache:interval=2", 0.01, 0.7), Point("deepcache:interval=3", 0.2, 0.5))).write(
        folder
    )
    said = sfumato("generate", *ASK, "-m", folder, "--optimize", "fast", "-o", "a.png", "--json")
    assert said.code == 0, said.err
    assert said.data["request"]["techniques"][-1] == {"id": "deepcache", "settings": {"interval": 2}}
    assert "nothing is reused" not in said.err


def test_fast_goes_by_a_built_in_model_until_the_own_one_is_measured(sfumato: Any, tiny: Path) -> None:
    ask = ("--size", "64x64", "--steps", "20", "--seed", "1", "-p", "a cube")
    said = sfumato("generate", *ask, "-m", tiny, "--optimize", "fast", "-o", "a.png", "--json")
    assert said.code == 0, said.err
    used = [t["id"] for t in said.data["request"]["techniques"]]
    assert "deepcache" in used and "no more than 6% on still-life-unet" in said.err
    assert sfumato("replay", "a.png", "-o", "again.png").code == 0 and pixels("a.png") == pixels("again.png")


@native
def test_what_the_user_chose_stays(sfumato: Any, tiny: Path) -> None:
    said = sfumato(
        "generate", *ASK, "-m", tiny, "--optimize", "balanced", "-t", "dgq", "-o", "a.png", "--json"
    )
    assert said.code == 0, said.err
    assert [t["id"] for t in said.data["request"]["techniques"]] == ["dgq", "winograd", "int8-attention"]
    assert "int8 is left out: another technique has its place, weights" in said.err
    assert any("int8 is left out" in note for note in said.data["notes"])


PACKED = "the layers of this model are packed already"


@pytest.fixture(scope="module")
def packed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layers, of 64 weights and up."""
    return all_packed(tiny, tmp_path_factory.mktemp("packed") / "model", "int4")


def all_packed(tiny: Path, folder: Path, form: str) -> Path:
    quantise(tiny, folder, {"unet": WeightOnly(form, 64, ())}, said={"unet": ""})
    return folder


@pytest.mark.parametrize(
    "technique", ["svdquant:inputs=8", "w8a8:smallest=64", "weight-only:smallest=64", "fused-qkv"]
)
def test_a_convert_that_finds_packed_layers_alone_is_refused(
    sfumato: Any, packed: Path, technique: str
) -> None:
    """The picture would be said to be made with it."""
    said = sfumato("generate", *ASK, "-m", packed, "-t", technique, "-o", "a.png")
    assert said.code == 2 and f"{technique}' changes nothing: {PACKED}; drop it" in said.err
    assert said.err.count("\n") == 1 and not Path("a.png").exists()


@native
@pytest.mark.parametrize("level", ["exact", "balanced", "small"])
def test_a_level_drops_what_finds_packed_layers_alone(sfumato: Any, packed: Path, level: str) -> None:
    said = sfumato("generate", *ASK, "-m", packed, "--optimize", level, "-o", "a.png", "--json")
    assert said.code == 0, said.err
    lost = {"exact": "products", "balanced": "int8", "small": "weight-only"}[level]
    assert lost not in {technique["id"] for technique in said.data["request"]["techniques"]}
    assert said.err.count(f"optimize: {lost} is left out: {PACKED}") == 1
    assert sfumato("replay", "a.png", "-o", "again.png").code == 0 and pixels("a.png") == pixels("again.png")


@native
def test_int8_takes_layers_over_that_are_packed_in_8_bits(sfumato: Any, tiny: Path, tmp_path: Path) -> None:
    eight = all_packed(tiny, tmp_path / "eight", "int8")
    said = sfumato("generate", *ASK, "-m", eight, "-t", "int8:smallest=64", "-o", "a.png", "--json")
    assert said.code == 0, said.err
    assert [t["id"] for t in said.data["request"]["techniques"]] == ["int8"]
    assert sfumato("generate", *ASK, "-m", eight, "-o", "b.png").code == 0
    assert pixels("a.png") != pixels("b.png")  # inputs are rounded too


def test_a_model_on_the_shelf_remembers_what_found_nothing(packed: Path) -> None:
    shelf, ask = Shelf(), {"model": str(packed), "prompt": "x", "device": "cpu", "dtype": "float32"}
    level = GenerateRequest.model_validate(ask | {"optimize": "small"})
    named = GenerateRequest.model_validate(ask | {"techniques": ["weight-only"]})
    for _ in range(2):
        found = opened(level, shelf)
        assert not found.request.techniques and found.notes == (
            f"optimize: weight-only is left out: {PACKED}",
        )
    with pytest.raises(BadInput, match="changes nothing"):
        opened(named, shelf)
    assert shelf.model is found.model


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("-t", "int8"), "int8 computes by oneDNN, without tiles and fused norms: kernels in C++"),
        (("-t", "winograd"), "winograd runs in plain torch: kernels in C++"),
        (
            ("--optimize", "balanced"),
            "int8 computes by oneDNN, without tiles and fused norms; winograd runs in plain torch: kernels in C++",
        ),
    ],
)
def test_what_converts_lose_without_a_compiler_is_said_once(
    tiny: Path, tmp_path: Path, given: tuple[str, ...], told: str
) -> None:
    """In a process of its own, which finds no compiler."""
    if int8() is not None:
        pytest.skip(str(int8()))
    command = (sys.executable, "-m", "sfumato.app", "generate", *ASK, "-m", str(tiny), *given, "-o", "a.png")
    alone = dict(os.environ, PATH=str(tmp_path), HOME=str(tmp_path))
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(told) == 1 and done.stderr.count("plain torch") <= 1


def test_a_level_that_has_nothing_for_a_device_says_so(sfumato: Any, tiny: Path) -> None:
    said = sfumato(
        "generate", *ASK, "-m", tiny, "--optimize", "balanced", "--dtype", "bfloat16", "-o", "a.png"
    )
    assert said.code == 0 and "balanced has nothing for bfloat16 on cpu yet" in said.err


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("typo", "'typo' is no device; write auto, cpu, cuda, cuda:1, mps or xpu"),
        ("cpu:1", "'cpu:1' is no device"),
        ("xpu:7", "'xpu:7' is not there (torch sees "),
        ("cuda:99", "'cuda:99' is not there (torch sees "),
    ],
)
@pytest.mark.parametrize("more", [(), ("--optimize", "exact")])
def test_a_device_that_is_not_there(
    sfumato: Any, tiny: Path, device: str, told: str, more: tuple[str, ...]
) -> None:
    said = sfumato("generate", *ASK, "-m", tiny, "--device", device, *more, "-o", "a.png")
    assert said.code == 2 and f"device: {told}" in said.err and said.err.count("\n") == 1, said.err


@native
@pytest.mark.parametrize("moved", ["superpipeline", "flash-offload"])
@pytest.mark.parametrize("level", ["exact", "balanced"])
def test_weights_come_and_go_after_a_level_has_changed_them(
    sfumato: Any, tiny: Path, moved: str, level: str
) -> None:
    ask = ("generate", *ASK, "-m", tiny, "--optimize", level)
    assert sfumato(*ask, "-o", "held.png").code == 0
    said = sfumato(*ask, "-t", f"{moved}:budget=0.01", "-o", "moved.png")
    assert said.code == 0, said.err
    assert pixels("held.png") == pixels("moved.png")
    asked = {"model": str(tiny), "device": "cpu", "dtype": "float32"}
    request = GenerateRequest.model_validate(asked | {"techniques": [f"{moved}:budget=0.01"]})
    assert facts(request).offload and not facts(GenerateRequest.model_validate(asked)).offload


def test_what_is_refused(sfumato: Any, tiny: Path, tmp_path: Path) -> None:
    for given, told in (
        (("-t", "int8", "-t", "weight-only"), "'int8, weight-only' both need the slot 'weights'; drop one"),
        (("-t", "int8", "--dtype", "bfloat16"), "this one is torch.bfloat16 on cpu"),
        (("-t", "w8a8:kind=int4"), "kind must be one of fp8, int8, got 'int4'"),
        (("-t", "lora:file=a.safetensors"), "is given as --lora here"),
        (("--optimize", "wild"), "must be one of 'off', 'exact'"),
    ):
        said = sfumato("generate", *ASK, "-m", tiny, *given, "-o", "no.png")
        assert said.code == 2 and told in said.err, said.err
        assert not Path("no.png").exists()


@native
def test_loras_and_converts_that_change_their_weights(sfumato: Any, tiny: Path, tmp_path: Path) -> None:
    lora, start = (
        tmp_path / "red.safetensors",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    )
    save_file({f"{start}.lora_{part}.weight": torch.ones(shape) for part, shape in SHAPES.items()}, lora)
    said = sfumato("generate", *ASK, "-m", tiny, "--lora", lora, "-t", "winograd", "-o", "a.png")
    assert said.code == 2 and "winograd' changes the weights that LoRAs act on" in said.err
    said = sfumato("generate", *ASK, "-m", tiny, "--lora", lora, "-t", "compile:backend=eager", "-o", "a.png")
    assert said.code == 2 and "compile' does not see LoRAs" in said.err
    said = sfumato("generate", *ASK, "-m", tiny, "--lora", lora, "--optimize", "balanced", "-o", "a.png")
    assert said.code == 0, said.err
    assert "int8 is left out: LoRAs act on the weights" in said.err


def test_what_a_gpu_would_do_runs_here_too(sfumato: Any, tiny: Path) -> None:
    """The techniques of a GPU's levels are no kernels of its own: elsewhere they compute the same, up to roundings."""
    made = {
        "plain": (),
        "exact": ("channels-last", "fused-qkv", "compile:backend=eager"),
        "balanced": ("channels-last", "fused-qkv", "w8a8:smallest=64", "compile:backend=eager,sizes=seen"),
    }
    for name, techniques in made.items():
        given = [word for technique in techniques for word in ("-t", technique)]
        said = sfumato("generate", *ASK, "-m", tiny, *given, "-o", f"{name}.png")
        assert said.code == 0, said.err
    plain, exact, balanced = (pixels(f"{name}.png") for name in made)
    assert max(abs(a - b) for a, b in zip(exact, plain, strict=True)) <= 1
    assert balanced != plain
    assert sum(abs(a - b) for a, b in zip(balanced, plain, strict=True)) / len(plain) < 8
