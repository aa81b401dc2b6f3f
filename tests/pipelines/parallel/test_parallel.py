"""Two and three processes against one, over the tiny networks of all families."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.parallel.group import Shape
from sfumato.pipelines.parallel.tokens import PICTURE, TEXT, Cut, shares
from tiny_nets import FAMILIES
from tiny_unets import NAMES

CHILD = Path(__file__).with_name("together_child.py")
UNCUT = {
    "sana": "SanaTransformerBlock",
    "mochi": "MochiTransformerBlock",
    "lumina_next": "LuminaNextDiTBlock",
}
ROUNDING = 2e-5
"""Six steps of float32 through networks whose weights are large: sums in another order."""


def together(size: int, home: Path, kind: str, *names: str) -> dict[str, Any]:
    """What `size` processes found."""
    command = [sys.executable, str(CHILD)]
    started = [
        subprocess.Popen([*command, str(rank), str(size), str(home), kind, *names], stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    said = [process.communicate(timeout=600)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0] * size, said
    found: dict[str, Any] = json.loads((home / f"{kind}.json").read_text())
    return found


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return together(2, tmp_path_factory.mktemp("cfg"), "cfg", *FAMILIES, *NAMES)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return together(2, tmp_path_factory.mktemp("ulysses"), "ulysses", *FAMILIES)


@pytest.fixture(scope="module")
def ringed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny networks have two heads, so that three processes go round in a ring."""
    return together(3, tmp_path_factory.mktemp("ring"), "ulysses", "flux", "lumina2", "wan")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *NAMES])
def test_spread_guidance_is_the_guidance(spread: dict[str, Any], name: str) -> None:
    """To the bit where each condition has its own batch; beside a shared batch within the rounding of its products."""
    found = spread[name]
    assert found["same"] and found["alone"]
    assert found["far"] < ROUNDING
    assert found["rows"] == 6, "six steps, one condition each"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in UNCUT])
def test_cut_tokens_are_the_tokens(cut: dict[str, Any], name: str) -> None:
    found = cut[name]
    assert "refused" not in found, found
    assert found["same"] and found["twice"]
    assert found["far"] < ROUNDING and found["far of two"] < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("name", UNCUT)
def test_what_cannot_be_cut_is_refused(cut: dict[str, Any], name: str) -> None:
    assert f"tokens of {UNCUT[name]} can't be cut" in cut[name]["refused"]


@pytest.mark.slow
def test_rings(cut: dict[str, Any], ringed: dict[str, Any]) -> None:
    assert max(cut["ring"] + ringed["ring"]) < 1e-6
    for name in ("flux", "lumina2", "wan"):
        assert ringed[name]["same"] and ringed[name]["far"] < ROUNDING


@pytest.mark.parametrize(("count", "size"), [(7, 2), (2, 3), (64, 8), (0, 2)])
def test_shares_are_even(count: int, size: int) -> None:
    found = shares(count, size)
    assert sum(found) == count and max(found) - min(found) <= 1


def test_the_order_of_gathered_tokens() -> None:
    cut = Cut(2, 0, {PICTURE: 3, TEXT: 2}, text_leads=True)
    assert cut.order("joint").tolist() == [0, 2, 3, 1, 4]
    assert cut.locals("joint") == [3, 2]


def test_too_many_processes() -> None:
    with pytest.raises(BadInput, match=r"branches = 65 must be in 1\.\.64"):
        Shape(65, 1)
