"""block-cache: the picture against blocks repeated by hand, and tables: read, obeyed, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agreement import relative
from cached import counted, run
from sfumato.pipelines.blocks import cut, spans, stacks
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.patches._table import ReuseTable, read_table
from sfumato.pipelines.patches.block_cache import BlockCache
from sfumato.pipelines.patches.taylorseer import TaylorSeer
from tiny_nets import tiny

STEPS = 6


def names(net: Any) -> tuple[str, ...]:
    return tuple(block.name for stack in stacks(net) for block in stack)


def table(net: Any, rows: list[list[int]], folder: Path, order: int = 0) -> str:
    path = folder / f"table{order}.json"
    ReuseTable(type(net).__name__, names(net), tuple(map(tuple, rows)), order).write(path)
    return str(path)


@pytest.mark.parametrize("family", ["flux", "sd3", "hunyuan_dit"])
def test_is_blocks_repeated_by_hand(family: str) -> None:
    model = tiny(family)
    added: dict[int, Any] = {}
    calls = [0]

    def enters(span: Any, before: Any) -> bool:
        calls[0] += span.index == 0
        return calls[0] % 3 != 1  # calls 1 and 4 are whole

    def leaves(span: Any, before: Any, after: Any) -> Any:
        if after is None:
            return tuple(None if d is None else a + d for a, d in zip(before, added[span.index], strict=True))
        added[span.index] = tuple(None if b is None else b - a for a, b in zip(before, after, strict=True))
        return after

    with spans(cut([[block] for stack in stacks(model.denoise.net) for block in stack]), enters, leaves):
        wanted = run(model)
    assert relative(run(model, BlockCache(3)), wanted) < 1e-6


def test_a_table_is_obeyed(tmp_path: Path) -> None:
    """The first step is always whole, whatever the table says."""
    model = tiny("flux")
    rows = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    with counted(model.denoise.net) as seen:
        run(model, BlockCache(table=table(model.denoise.net, rows, tmp_path)))
    assert [seen[name] for name in names(model.denoise.net)] == [5, 4, 2, 1]


def test_a_full_table_is_off(tmp_path: Path) -> None:
    model = tiny("flux")
    whole = BlockCache(table=table(model.denoise.net, [[1] * 4] * STEPS, tmp_path))
    assert run(model, whole).equal(run(model))


def test_a_table_for_something_else(tmp_path: Path) -> None:
    model, other = tiny("flux"), tiny("sd3")
    path = table(other.denoise.net, [[1] * 3] * STEPS, tmp_path)
    with pytest.raises(
        BadInput, match=r"for the 3 blocks of a SD3\w+, the model has 4 of a FluxTransformer2DModel"
    ):
        run(model, BlockCache(table=path))
    forecast = table(model.denoise.net, [[1] * 4] * STEPS, tmp_path, order=1)
    assert run(model, TaylorSeer(table=forecast)).equal(run(model))
    for wrong, words in (
        (BlockCache(table=forecast), "for order 1, not 0; use it by taylorseer:order=1"),
        (TaylorSeer(order=2, table=forecast), "for order 1, not 2; use it by taylorseer:order=1"),
        (
            TaylorSeer(table=table(model.denoise.net, [[1] * 4] * STEPS, tmp_path)),
            "not 1; use it by block-cache",
        ),
    ):
        with pytest.raises(BadInput, match=words):
            run(model, wrong)
    short = table(model.denoise.net, [[1] * 4] * 4, tmp_path)
    with pytest.raises(BadInput, match="is for 4 steps, the run has 6; give it as many"):
        run(model, BlockCache(table=short))


def test_a_table_comes_back(tmp_path: Path) -> None:
    made = ReuseTable("Net", ("a.0", "a.1"), ((1, 1), (0, 1)), 2)
    made.write(tmp_path / "deep" / "t.json")
    assert read_table(tmp_path / "deep" / "t.json") == made
    assert (made.steps, made.share) == (2, 0.75)


GOOD = {"network": "Net", "blocks": ["a"], "compute": [[1], [0]], "order": 0}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "needs network, blocks, compute and order"),
        (json.dumps(GOOD | {"order": 3}), "needs an order of 0, 1 or 2"),
        (json.dumps(GOOD | {"order": True}), "needs an order of 0, 1 or 2"),
        (json.dumps(GOOD | {"more": 1}), "and nothing else"),
        (json.dumps(GOOD | {"blocks": [1]}), "a list of names"),
        (json.dumps(GOOD | {"compute": []}), "1..10000 blocks and steps"),
        (json.dumps(GOOD | {"compute": [[1], [0, 1]]}), "1 numbers 0 or 1 in the row of step 1"),
        (json.dumps(GOOD | {"compute": [[1], [2]]}), "1 numbers 0 or 1 in the row of step 1"),
        (json.dumps(GOOD | {"compute": [[1], [True]]}), "1 numbers 0 or 1 in the row of step 1"),
    ],
)
def test_bad_tables(tmp_path: Path, found: str, words: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(found)
    with pytest.raises(BadInput, match=words):
        read_table(path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_table(tmp_path / "none.json")
