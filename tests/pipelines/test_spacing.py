"""Full steps: the first, then evenly or ever rarer or round a centre; and the ones that were missed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from sfumato.pipelines.spacing import Spacing, full_steps


def test_evenly() -> None:
    assert full_steps(Spacing(3, 0.0), 12) == {0, 3, 6, 9}
    assert full_steps(Spacing(3, 0.25), 12) == {0, 1, 2, 5, 8, 11}
    assert full_steps(Spacing(1, 0.0), 4) == full_steps(Spacing(9, 1.0), 4) == {0, 1, 2, 3}


def test_ever_rarer_after_the_start() -> None:
    full = sorted(full_steps(Spacing(5, 0.2, 1.3), 20))
    assert full == [0, 1, 2, 3, 5, 9, 14]
    gaps = [b - a for a, b in pairwise(full[3:])]
    assert gaps == sorted(gaps)


def test_round_a_centre() -> None:
    crowded = sorted(full_steps(Spacing(5, 0.0, 2.0, 15), 50))
    gaps = [b - a for a, b in pairwise(crowded)]
    near = min(range(len(gaps)), key=lambda i: abs(crowded[i] - 15))
    assert gaps[near] < gaps[0] and gaps[near] < gaps[-1]


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("start", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("power", "center"), [(1.0, -1), (1.4, -1), (1.4, 0), (4.0, 3), (1.4, 40)])
def test_the_first_is_full_and_all_are_steps(steps: int, start: float, power: float, center: int) -> None:
    found = full_steps(Spacing(3, start, power, center), steps)
    assert 0 in found and found <= set(range(steps))
    assert {step for step in range(steps) if step < start * steps} <= found


def test_what_was_missed_is_due() -> None:
    spacing = Spacing(3, 0.0)
    assert [spacing.due(12, now, 3) for now in (3, 4, 5, 6)] == [True, False, False, True]
    assert spacing.due(12, 4, 0) and spacing.due(12, 4, -1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"interval": 0, "start": 0.0}, "interval must be 1 or more, got 0"),
        ({"interval": 2, "start": 1.5}, "start must be in 0..1, got 1.5"),
        ({"interval": 2, "start": 0.0, "power": 0.5}, "power must be in 1..4, got 0.5"),
        ({"interval": 2, "start": 0.0, "center": -2}, "center must be -1 or more, got -2"),
        ({"interval": 2, "start": 0.0, "center": 3}, "with power = 1 nothing crowds around a center"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Spacing(**given)
