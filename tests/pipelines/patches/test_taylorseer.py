"""taylorseer: weights exact on polynomials, the paper's sum written out, and when blocks are computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cached import counted, run
from sfumato.pipelines.blocks import stacks
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.patches._table import ReuseTable
from sfumato.pipelines.patches._weights import newton, taylor
from sfumato.pipelines.patches.taylorseer import TaylorSeer
from tiny_nets import tiny

KNOWN = [(9,), (9, 6), (9, 6, 3), (9, 8, 4)]


@pytest.mark.parametrize("steps", KNOWN)
@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_polynomials_come_out_exactly(steps: tuple[int, ...], ahead: int) -> None:
    """Newton's form of every degree below the number of steps; Taylor's up to degree 1."""
    now = steps[0] + ahead
    for form, most in ((newton, 2), (taylor, 1)):
        for degree in range(min(len(steps) - 1, most) + 1):
            told = form(steps, now) if form is newton else form(steps[: degree + 1], now)
            known = steps if form is newton else steps[: degree + 1]
            value = sum(w * s**degree for w, s in zip(told, known, strict=True))
            assert value == pytest.approx(now**degree)


def test_the_papers_sum() -> None:
    """F + k dF / N + k^2 / 2 ddF / N^2, with dF and ddF the first and second differences over N steps."""
    values, n, k = (5.0, -1.0, 3.5), 3, 2
    first, second = values[0] - values[1], values[0] - 2 * values[1] + values[2]
    wanted = values[0] + k * first / n + k**2 / 2 * second / n**2
    told = taylor((9, 6, 3), 9 + k)
    assert sum(w * v for w, v in zip(told, values, strict=True)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("patch", "times"),
    [
        (TaylorSeer(2, warmup=1), 3),  # steps 0, 2, 4
        (TaylorSeer(3, warmup=1), 2),  # 0, 3
        (TaylorSeer(2, warmup=3), 4),  # 0, 1, 2, 4
        (TaylorSeer(3, warmup=2, whole=True), 3),  # 0, 1, 4
        (TaylorSeer(2, warmup=6), 6),
    ],
)
def test_when_blocks_are_computed(patch: TaylorSeer, times: int) -> None:
    model = tiny("flux")
    with counted(model.denoise.net) as seen:
        run(model, patch)
    assert set(seen.values()) == {times} and len(seen) == 4


def test_order_0_repeats_and_higher_orders_differ() -> None:
    model = tiny("flux")
    made = [
        run(model, TaylorSeer(2, order=order, warmup=3, newton=newton))
        for order in range(3)
        for newton in (False, True)
    ]
    zero, zero_newton, one, one_newton, two, two_newton = made
    assert zero.equal(zero_newton)
    assert not zero.equal(one) and not one.equal(two) and not two.equal(two_newton)
    assert (one - one_newton).norm() < 1e-4 * one.norm()


def test_a_table_in_the_place_of_the_interval(tmp_path: Path) -> None:
    model = tiny("flux")
    blocks = [block.name for stack in stacks(model.denoise.net) for block in stack]
    rows = tuple((int(step in (0, 1, 2, 4)),) * len(blocks) for step in range(6))
    path = tmp_path / "table.json"
    ReuseTable(type(model.denoise.net).__name__, tuple(blocks), rows, 1).write(path)
    wanted = run(model, TaylorSeer(2, warmup=3))
    assert run(model, TaylorSeer(table=str(path))).equal(wanted)
    with pytest.raises(ValueError, match="blocks by themselves"):
        TaylorSeer(whole=True, table=str(path))
    with pytest.raises(BadInput, match=r"none\.json cannot be read"):
        run(model, TaylorSeer(table=str(tmp_path / "none.json")))
