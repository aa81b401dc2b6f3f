"""What stays in memory when weights are left elsewhere: whole runs at the shapes of Stable Diffusion 1.5.

Each run is a process of its own, measured as in `memory.py`; a picture of 256 x 256 at one step, decoded in stripes.
Memory is the same on a busy machine; time is not, and is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness import Options, Row, finish, machine, row
from memory import held, sd_shaped

BUDGETS = (1.0, 0.5)
"""GB of the network's weights at once."""
ASKED: dict[str, Any] = {
    "prompt": "a red cube",
    "steps": 1,
    "seed": 1,
    "width": 256,
    "height": 256,
    "decode": "stripes",
}


def measure(folder: Path, work: Path) -> list[Row]:
    asked = ASKED | {"model": str(folder)}
    plain = held(asked, work)
    rows = [
        row("the network's weights", [plain["network"] / 1e9], "GB"),
        row("in memory: held", [plain["held"] / 1e9], "GB"),
    ]
    ways: dict[str, dict[str, Any]] = {f"--offload {budget:g}": {"offload": budget} for budget in BUDGETS}
    for technique in ("superpipeline", "flash-offload"):
        ways[f"{technique}:budget=1"] = {"techniques": [f"{technique}:budget=1"]}
    for name, changed in ways.items():
        found = held(asked | changed, work)
        rows.append(row(f"{name}: held", [found["held"] / 1e9], "GB"))
        rows.append(row(f"{name}: held / in memory", [found["held"] / plain["held"]], "x"))
        print(*rows[-2:], sep="\n", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    given = Options("sd15", 1, 1, "cpu", parser.parse_args().dry)
    about = machine()
    with tempfile.TemporaryDirectory() as place:
        folder = sd_shaped(Path(place) / "sd15")
        rows = measure(folder, Path(place))
    finish("offload", "Weights left elsewhere, shapes of Stable Diffusion 1.5", rows, about, given)


if __name__ == "__main__":
    main()
