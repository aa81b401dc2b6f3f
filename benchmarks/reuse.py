"""What reusing steps costs and saves: sampling time, distance from the full run's picture, and what a judge reads.

Every technique runs the same prompts and seeds, in turn with the full run. *All right* is the share of pictures of
held-out captions in which the judge reads every word right; it is read of the built-in models only.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from harness import Options, Row, finish, machine, row
from sfumato.app.assembly import guiding_scale
from sfumato.app.reuse import candidates, way
from sfumato.assets.recipes.measure import bars, prompts
from sfumato.assets.recipes.reuse import FULL, Way, compare
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.protocols import Model
from sfumato.pipelines.text_to_image import TextToImage

SAME = 100.0
"""Decibels that stand for a picture without a difference."""


def ways(model: Model, table: Path | None = None) -> dict[str, Way]:
    """By their names on the command line."""
    scale = guiding_scale(model)
    texts = [*candidates(model, scale), *([] if table is None else [f"block-cache:table={table}"])]
    return {text: way(text, scale) for text in texts}


def measure(model: Model, given: Options, chosen: dict[str, Way], judged: int) -> list[Row]:
    """Three rows for each way, and what the judge reads of the full run."""
    found = compare(model, chosen, prompts(given.repeats), steps=given.steps)
    rows = []
    if judged:
        rows.append(row(f"{FULL}: all right", [all_right(model, Way(), given.steps, judged)], "share"))
    for name, result in found.items():
        rows.append(row(f"{name}: sampling time / the full run's", result.times, "x"))
        rows.append(row(f"{name}: latents' change", result.losses, "share"))
        rows.append(row(f"{name}: PSNR", [SAME if math.isinf(p) else p for p in result.psnr], "dB"))
        if judged:
            rows.append(
                row(f"{name}: all right", [all_right(model, chosen[name], given.steps, judged)], "share")
            )
    return rows


def all_right(model: Model, way: Way, steps: int, count: int) -> float:
    make = TextToImage(model, patches=way.patches, guidance=way.guidance)
    return bars(lambda texts, seeds: make(texts, steps=steps, seed=seeds[0]).pixels, count=count)["all"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="still-life", help="built-in model or folder (default still-life)")
    parser.add_argument("--repeats", type=int, default=12, help="prompts (default 12)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--judged", type=int, default=60, help="captions that the judge reads; 0 is none")
    parser.add_argument("--table", type=Path, help="file made by `sfumato train harmonica`")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    arguments = parser.parse_args()
    given = Options(arguments.model, arguments.repeats, arguments.steps, arguments.device, arguments.dry)
    about, model = machine(given.device), open_model(given.model, device=given.device)
    rows = measure(model, given, ways(model, arguments.table), arguments.judged)
    name = Path(given.model).name
    finish(f"reuse-{name}", f"Reuse across steps, {name}", rows, about, given)


if __name__ == "__main__":
    main()
