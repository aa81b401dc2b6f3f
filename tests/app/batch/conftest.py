"""Rows for the tiny model, and the command that runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = {"size": "64x64", "steps": 2}


@pytest.fixture
def rows(tiny: Path) -> Callable[..., str]:
    """A file of rows, each with the tiny model."""

    def write(*given: dict[str, Any], name: str = "rows.jsonl") -> str:
        base = {"model": str(tiny), **SMALL, "prompt": "a cube"}
        lines = [json.dumps(row if "task" in row else {**base, **row}) for row in given]
        Path(name).write_text("\n".join(lines), encoding="utf-8")
        return name

    return write


@pytest.fixture
def batch(sfumato: Callable[..., Any]) -> Callable[..., Any]:
    def run(name: str, *options: str) -> Any:
        return sfumato("batch", "run", name, "-o", "made", *options)

    return run
