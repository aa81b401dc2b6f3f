"""Lumina-Image 2.0 against diffusers."""

from typing import Any

import pytest
import tiny_families
from agreement import PROMPT, SIZES, Case, agree, every_technique, hears, opened

CASE = Case(ask={"cfg_normalization": False})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(tiny_families.lumina2(tmp_path_factory.mktemp("lumina2")))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, CASE)


def test_prompt_matters(pair: tuple[Any, Any]) -> None:
    hears(pair[0])


def test_system_prompt_takes_room(pair: tuple[Any, Any]) -> None:
    model, pipe = pair
    room = model.limits.tokens - 1  # without the token that begins every text
    kept = pipe.tokenizer(pipe.system_prompt + " <Prompt Start> " + "b" * room).input_ids
    assert len(kept) == 256
    assert model.dropped("b" * room) == ""
    assert model.dropped("b" * room + "rd") == "rd"
    assert model.dropped(PROMPT) == ""


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
