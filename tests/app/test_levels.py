"""The levels of the dial `optimize` by what a machine can do: what is taken, and every reason against a part."""

from __future__ import annotations

import pytest
from sfumato.app.builder import build, find
from sfumato.app.chosen import Technique
from sfumato.app.levels import LEVELS, Facts, choice

HOPPER = Facts("cuda", "bfloat16", (9, 0))
AMPERE = HOPPER._replace(capability=(8, 6))
NO_TRITON = HOPPER._replace(triton="needs the package triton")
AROUND = ("channels-last", "fused-qkv")
COMPILED = "compile:sizes=seen"


@pytest.mark.parametrize(
    ("level", "facts", "taken"),
    [
        ("exact", HOPPER, (*AROUND, COMPILED)),
        ("balanced", HOPPER, (*AROUND, "w8a8", COMPILED)),
        ("fast", HOPPER, (*AROUND, "w8a8", COMPILED)),
        ("small", HOPPER, (*AROUND, "svdquant:inputs=8", COMPILED)),
        ("balanced", HOPPER._replace(capability=(8, 9), dtype="float16"), (*AROUND, "w8a8", COMPILED)),
        ("balanced", AMPERE, (*AROUND, "w8a8:kind=int8", COMPILED)),
        ("balanced", HOPPER._replace(capability=(7, 5)), (*AROUND, COMPILED)),
        ("balanced", HOPPER._replace(capability=(0, 0)), (*AROUND, COMPILED)),
        ("balanced", HOPPER._replace(dtype="float32"), (*AROUND, COMPILED)),
        ("balanced", NO_TRITON, (*AROUND, "w8a8", "attention")),
        ("balanced", NO_TRITON._replace(capability=(8, 0)), (*AROUND, "attention")),
        ("small", NO_TRITON, (*AROUND, "weight-only", "attention")),
        ("small", HOPPER._replace(capability=(7, 5)), (*AROUND, "weight-only", COMPILED)),
        ("balanced", HOPPER._replace(loras=True), ("channels-last", "attention")),
        ("exact", HOPPER._replace(projections=True), ("channels-last", COMPILED)),
        ("exact", HOPPER._replace(offload=True), (*AROUND, "attention")),
        ("balanced", Facts("cpu", "float32"), ("int8", "winograd", "int8-attention")),
        ("balanced", Facts("cpu", "float32", native="needs a compiler"), ("int8", "winograd")),
        ("balanced", Facts("cpu", "float32", int8="has none"), ("winograd", "int8-attention")),
        ("exact", Facts("cpu", "float32"), ("products", "winograd", "attention:backend=native")),
        ("exact", Facts("cpu", "float32", native="needs a compiler"), ("winograd",)),
        ("exact", Facts("cpu", "float32", loras=True), ("attention:backend=native",)),
        ("small", Facts("cpu", "float32", loras=True), ("weight-only",)),
        ("exact", Facts("cpu", "bfloat16"), ()),
        ("exact", Facts("mps", "float32"), ()),
    ],
)
def test_what_is_taken(level: str, facts: Facts, taken: tuple[str, ...]) -> None:
    assert choice(level, facts).techniques == taken


@pytest.mark.parametrize("level", LEVELS["cuda"])
def test_nothing_is_said_where_nothing_is_lacking(level: str) -> None:
    assert choice(level, HOPPER).notes == choice(level, Facts("cpu", "float32")).notes == ()


@pytest.mark.parametrize(
    ("level", "facts", "told"),
    [
        ("balanced", AMPERE, "instead of w8a8: products in fp8 begin at compute capability 8.9, and this GPU has 8.6"),
        ("balanced", HOPPER._replace(capability=(7, 5)), "w8a8 is left out: products in int8 begin at compute"),
        ("balanced", HOPPER._replace(capability=(0, 0)), "this GPU has none of NVIDIA's"),
        ("balanced", HOPPER._replace(dtype="float32"), "w8a8 is left out: its products on a GPU are for bfloat16"),
        ("exact", NO_TRITON, "attention instead of compile:sizes=seen: needs the package triton"),
        ("exact", HOPPER._replace(loras=True), "fused-qkv is left out: LoRAs act on the weights"),
        ("exact", HOPPER._replace(loras=True), "attention instead of compile:sizes=seen: LoRAs come and go"),
        ("exact", HOPPER._replace(projections=True), "fused-qkv is left out: another technique"),
        ("exact", HOPPER._replace(offload=True), "weights come and go"),
        ("balanced", Facts("cpu", "float32", loras=True), "int8 is left out: LoRAs act on the weights that it changes"),
        ("balanced", Facts("cpu", "bfloat16"), "balanced has nothing for bfloat16 on cpu yet"),
        ("fast", Facts("cpu", "bfloat16"), "fast has nothing but the reuse of steps for bfloat16 on cpu yet"),
        ("exact", Facts("xpu", "float32"), "exact has nothing for xpu yet; it is for cpu and cuda"),
        ("fast", Facts("mps", "float32"), "fast has nothing but the reuse of steps for mps yet"),
    ],
)  # fmt: skip
def test_what_is_said(level: str, facts: Facts, told: str) -> None:
    notes = choice(level, facts).notes
    assert any(told in note for note in notes), notes
    assert len(set(notes)) == len(notes)


def test_every_part_is_a_technique_and_slots_are_not_shared() -> None:
    for levels in LEVELS.values():
        for level in levels.values():
            slots = []
            for parts in level:
                made = [Technique.model_validate(part.technique) for part in parts]
                assert all(find(one, None, "techniques").kind in ("convert", "patch") for one in made)
                slots.append({build(one).slot for one in made})
            # an alternative may have another slot, as long as nothing else of the level has it
            flat = [slot for group in slots for slot in group]
            assert len(flat) == len(set(flat)), slots
