"""What reusing steps costs and saves: sampling time, distance from the full run's picture, and what a judge reads.

Every technique runs the same prompts and seeds, in turn with the full run. *All right* is the share of pictures of
held-out captions in which the judge reads every word right; it is read of the built-in models only.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import quality
from harness import Options, Row, finish, machine, row
from sfumato.app.assembly import guiding_scale
from sfumato.app.reuse import candidates, way
from sfumato.assets.recipes.measure import prompts
from sfumato.assets.recipes.reuse import FULL, Way, compare
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches._table import read_table
from sfumato.pipelines.protocols import Model
from sfumato.pipelines.text_to_image import TextToImage


def ways(model: Model) -> dict[str, Way]:
    """By their names on the command line."""
    scale = guiding_scale(model)
    return {text: way(text, scale) for text in candidates(model, scale)}


def tables(model: Model, files: Sequence[Path]) -> dict[str, Way]:
    """Learned tables, and the fixed intervals beside them."""
    texts: dict[str, str] = {}
    for file, table in [(file, read_table(file)) for file in files]:
        kind = f"taylorseer:order={table.order}," if table.order else "block-cache:"
        texts |= {f"{kind}interval={value}": f"{kind}interval={value}" for value in (2, 3)}
        texts[f"{kind}table of {table.share:.0%} computed"] = f"{kind}table={file}"
    return {name: way(text, guiding_scale(model)) for name, text in texts.items()}


def measure(model: Model, given: Options, chosen: dict[str, Way], judged: int) -> list[Row]:
    """Rows for each way, and what the judge reads of the full run."""
    found = compare(model, chosen, prompts(given.repeats), steps=given.steps)
    rows: list[Row] = []
    full = quality.pictures(TextToImage(model), judged, given.steps) if judged else None
    if full is not None:
        rows.append(row(f"{FULL}: all right", [quality.all_right(full)], "share"))
    for name, result in found.items():
        rows.append(row(f"{name}: sampling time / the full run's", result.times, "x"))
        rows.append(row(f"{name}: latents' change", result.losses, "share"))
        if full is None:
            decibels = [quality.SAME if math.isinf(p) else p for p in result.psnr]
            rows.append(row(f"{name}: PSNR", decibels, "dB"))
            continue
        make = TextToImage(model, patches=chosen[name].patches, guidance=chosen[name].guidance)
        made = quality.pictures(make, judged, given.steps)
        rows += quality.rows(name, made, full, judged=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="still-life", help="built-in model or folder (default still-life)")
    parser.add_argument("--repeats", type=int, default=12, help="prompts (default 12)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--judged", type=int, default=100, help="captions that the judge reads; 0 is none")
    parser.add_argument(
        "--table",
        type=Path,
        action="append",
        default=[],
        help="file made by `sfumato train harmonica`; repeat",
    )
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    arguments = parser.parse_args()
    given = Options(arguments.model, arguments.repeats, arguments.steps, arguments.device, arguments.dry)
    about, model = machine(given.device), open_model(given.model, device=given.device)
    name = Path(given.model).name
    learned = tables(model, arguments.table)
    rows = measure(model, given, learned or ways(model), arguments.judged)
    if learned:
        finish(f"harmonica-{name}", f"Learned tables and fixed intervals, {name}", rows, about, given)
    else:
        finish(f"reuse-{name}", f"Reuse across steps, {name}", rows, about, given)


if __name__ == "__main__":
    main()
