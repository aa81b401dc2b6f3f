"""What a batch left in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lines(folder: str | Path = "made") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "manifest.jsonl").read_text().splitlines()]


def pictures(folder: str | Path = "made") -> dict[int, bytes]:
    """The bytes of the pictures by row."""
    return {
        line["row"]: Path(folder, line["files"][0]["path"]).read_bytes()
        for line in lines(folder)
        if line["state"] == "done"
    }
