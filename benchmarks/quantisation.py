"""What packed weights cost and save: size, time, distance from full precision's picture, and what a judge reads.

Every method makes the same prompts with the same seeds as the plain network. *All right* is the share of pictures of
held-out captions in which the judge reads every word right; it is read of the built-in models only.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import quality
import torch
from harness import Options, Row, finish, interleave, machine, ratios, row
from PIL import Image
from sfumato.app.quantize_command import MIXED, STEPS, TRIED
from sfumato.assets.recipes.measure import prompts
from sfumato.kernels.quant.formats import NAMED
from sfumato.kernels.quant.layers import untold
from sfumato.kernels.quant.stored import held_bytes
from sfumato.pipelines.calibration import sensitivity, watch
from sfumato.pipelines.converts._packing import SMALLEST
from sfumato.pipelines.converts.dgq import Dgq
from sfumato.pipelines.converts.int8 import Int8
from sfumato.pipelines.converts.lorc import Lorc
from sfumato.pipelines.converts.minifloat import Minifloat
from sfumato.pipelines.converts.mixdq import MixDq
from sfumato.pipelines.converts.noisyquant import NoisyQuant
from sfumato.pipelines.converts.ptq4dm import Ptq4dm
from sfumato.pipelines.converts.squeeze import Squeeze
from sfumato.pipelines.converts.svdquant import SvdQuant
from sfumato.pipelines.converts.weight_only import WeightOnly
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.protocols import Model
from sfumato.pipelines.text_to_image import TextToImage
from torch import nn

CALIBRATION = 8
"""Prompts, none of which are measured."""
SHOWN = 4
"""Pictures in a row of the sheet."""
Convert = Callable[[nn.Module], nn.Module]


def methods(model: Model, steps: int, chosen: Sequence[str]) -> dict[str, Convert]:
    """By name; what has to be calibrated is, once for all."""
    texts = prompts(CALIBRATION, split="train")
    seen = watch(model, texts, steps)
    found: dict[str, Convert] = {f"weight-only {name}": WeightOnly(name) for name in ("int8", "int4", "nf4")}
    found |= {f"minifloat {bits}": Minifloat(bits) for bits in (8, 6, 4)}
    found |= {
        "int8": Int8(),
        "dgq": Dgq(),
        "lorc": Lorc(),
        "ptq4dm": Ptq4dm(seen),
        "noisyquant": NoisyQuant(seen),
    }
    found |= {"squeeze 4": Squeeze(seen=seen), "squeeze 3": Squeeze(bits=3, seen=seen)}
    found |= {"svdquant W4A4": SvdQuant(seen=seen), "svdquant W4A8": SvdQuant(inputs=8, seen=seen)}
    found |= {"svdquant W4A4 without GPTQ": SvdQuant(seen=seen, gptq=False)}
    found |= {"svdquant W4A8 without GPTQ": SvdQuant(inputs=8, seen=seen, gptq=False)}
    found |= {"plain W4A4": SvdQuant(rank=0, alphas=())}
    return {name: convert for name, convert in found.items() if not chosen or name in chosen}


def mixed(model: Model) -> dict[str, Convert]:
    """Formats by layer and one format for all layers, both as large."""
    formats = {name: NAMED[name] for name in MIXED}
    weighed = sensitivity(model, prompts(TRIED, split="train"), STEPS, formats, smallest=SMALLEST)
    found: dict[str, Convert] = {}
    for name in ("int3", "int4"):
        found[f"{name} for all"] = WeightOnly(name, skip=())
        found[f"mixdq as large as {name}"] = MixDq(weighed, sum(s[name] for s in weighed.sizes.values()))
    return found


def sheet(model: Any, ways: dict[str, Convert], steps: int, file: Path) -> None:
    """The first captions, in full precision and below it each way."""
    plain, make = model.denoise.net, TextToImage(model)
    rows = [quality.pictures(make, SHOWN, steps)]
    for convert in ways.values():
        model.denoise.net = convert(copy.deepcopy(plain))
        rows.append(quality.pictures(make, SHOWN, steps))
    model.denoise.net = plain
    page = torch.cat([torch.cat([*row], 2) for row in rows], 1).clamp(0, 1) * 255
    Image.fromarray(page.round().byte().permute(1, 2, 0).numpy()).save(file, optimize=True)


def measure(model: Any, given: Options, ways: dict[str, Convert], timed: int, *, judged: bool) -> list[Row]:
    """Rows for each way, and what the judge reads with and without it."""
    plain, count = model.denoise.net, given.repeats
    size, make = held_bytes(plain), TextToImage(model)
    full = quality.pictures(make, count, given.steps)
    rows = [row("full precision: all right", [quality.all_right(full)], "share")] if judged else []
    for name, convert in ways.items():
        since, packed = len(rows), convert(copy.deepcopy(plain)).to(device=given.device)

        def run(net: nn.Module) -> None:
            model.denoise.net = net
            make("a red cube", steps=given.steps, seed=1)

        try:
            held = held_bytes(packed) + sum(map(untold, packed.modules()))
            rows.append(row(f"{name}: bytes / full precision's", [held / size], "x"))
            taken = interleave({"ours": partial(run, packed), "plain": partial(run, plain)}, repeats=timed)
            times = ratios(taken["ours"], taken["plain"])
            rows.append(row(f"{name}: a picture's time / full precision's", times, "x"))
            model.denoise.net = packed
            made = quality.pictures(make, count, given.steps)
            rows += quality.rows(name, made, full, judged=judged)
            print(*rows[since:], sep="\n", flush=True)
        finally:
            model.denoise.net = plain
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="still-life", help="built-in model or folder (default still-life)")
    parser.add_argument("--repeats", type=int, default=100, help="captions (default 100)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--timed", type=int, default=5, help="rounds that are timed (default 5)")
    parser.add_argument(
        "--unjudged", action="store_true", help="not a built-in model: the judge reads nothing"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="a method by its name in the table, to be printed alone; repeat",
    )
    parser.add_argument("--title", help="keep what --only chose, in a table of this name", metavar="WORD")
    parser.add_argument("--mixed", action="store_true", help="formats by layer (mixdq) beside one for all")
    parser.add_argument("--sheet", type=Path, help="file of a picture to write, in the place of measuring")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    arguments = parser.parse_args()
    given = Options(
        arguments.model,
        arguments.repeats,
        arguments.steps,
        arguments.device,
        arguments.dry or bool(arguments.only and not arguments.title),
    )
    about, model = machine(given.device), open_model(given.model, device=given.device)
    ways = mixed(model) if arguments.mixed else methods(model, given.steps, arguments.only)
    if arguments.sheet is not None:
        return sheet(model, ways, given.steps, arguments.sheet)
    rows = measure(model, given, ways, arguments.timed, judged=not arguments.unjudged)
    name = Path(given.model).name
    if arguments.mixed:
        finish(f"mixdq-{name}", f"Formats by layer and one for all, {name}", rows, about, given)
    else:
        word = f"-{arguments.title}" if arguments.title else ""
        title = f"Packed weights, {arguments.title + ', ' if word else ''}{name}"
        finish(f"quantisation{word}-{name}", title, rows, about, given)


if __name__ == "__main__":
    main()
