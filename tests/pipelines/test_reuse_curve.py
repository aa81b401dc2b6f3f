"""Measured curves: the pick, the file, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sfumato.pipelines.errors import BadWeights
from sfumato.pipelines.reuse_curve import CURVE, Point, ReuseCurve, read_curve

A, B, C, D = Point("a", 0.01, 0.9), Point("b", 0.05, 0.5), Point("c", 0.04, 0.6), Point("d", 0.2, 1.1)
GOOD = {"steps": 4, "points": [{"technique": "a", "loss": 0.1, "time": 0.5}]}


@pytest.mark.parametrize(
    ("most", "wanted"), [(0.0, None), (0.01, A), (0.04, C), (0.049, C), (0.05, B), (1.0, B)]
)
def test_the_fastest_within_the_loss(most: float, wanted: Point | None) -> None:
    assert ReuseCurve(4, (A, B, C, D)).pick(most) == wanted
    assert ReuseCurve(4, (D,)).pick(1.0) is None


def test_there_and_back(tmp_path: Path) -> None:
    assert read_curve(tmp_path) is None
    made = ReuseCurve(4, (A, B))
    made.write(tmp_path)
    assert read_curve(tmp_path) == made


@pytest.mark.parametrize(
    "found",
    [
        {},
        GOOD | {"steps": 0},
        GOOD | {"steps": True},
        GOOD | {"more": 1},
        GOOD | {"points": []},
        GOOD | {"points": [3]},
        GOOD | {"points": [{"technique": "a", "loss": 0.1}]},
        GOOD | {"points": [{"technique": 3, "loss": 0.1, "time": 1}]},
        GOOD | {"points": [{"technique": "a", "loss": -0.1, "time": 1}]},
        GOOD | {"points": [{"technique": "a", "loss": 0.1, "time": 0}]},
        GOOD | {"points": [{"technique": "a", "loss": "x", "time": 1}]},
    ],
)
def test_what_is_no_curve(tmp_path: Path, found: dict) -> None:
    (tmp_path / CURVE).write_text(json.dumps(found))
    with pytest.raises(BadWeights, match=CURVE):
        read_curve(tmp_path)
