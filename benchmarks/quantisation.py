"""What packed weights cost and save: size, time, distance from full precision's picture, and what a judge reads.

Every method makes the same prompts with the same seeds as the plain network. *All right* is the share of pictures of
held-out captions in which the judge reads every word right; it is read of the built-in models only.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import Options, Row, finish, machine, ratios, row, timed
from sfumato.assets.recipes.measure import bars, prompts
from sfumato.kernels.quant.formats import NAMED
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
SAME = 100.0
"""Decibels that stand for a picture without a difference."""
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
    found |= {"plain W4A4": SvdQuant(rank=0, alphas=())}
    if not chosen or "mixdq" in chosen:
        forms = {name: NAMED[name] for name in ("int2", "int3", "int4", "int6", "int8")}
        weighed = sensitivity(model, texts[:2], steps, forms, smallest=SMALLEST)
        found["weight-only int4, every layer"] = WeightOnly("int4", skip=())  # as large as the next
        found["mixdq"] = MixDq(weighed, sum(sizes["int4"] for sizes in weighed.sizes.values()))
    return {name: convert for name, convert in found.items() if not chosen or name in chosen}


def measure(model: Any, given: Options, chosen: Sequence[str], judged: int) -> list[Row]:
    """Four rows for each method, and what the judge reads with and without it."""
    plain, texts = model.denoise.net, prompts(given.repeats)
    rows, size, full = [], held_bytes(plain), Full(model, given.steps, texts)
    if judged:
        rows.append(row("full precision: all right", [all_right(model, given.steps, judged)], "share"))
    for name, convert in methods(model, given.steps, chosen).items():
        model.denoise.net = convert(copy.deepcopy(plain)).to(device=given.device)
        try:
            psnr, times = full.compare(plain)
            if name != "int8":  # whose weights lie within oneDNN's own tensors
                rows.append(
                    row(f"{name}: bytes / full precision's", [held_bytes(model.denoise.net) / size], "x")
                )
            rows.append(row(f"{name}: sampling time / full precision's", times, "x"))
            rows.append(row(f"{name}: PSNR", psnr, "dB"))
            if judged:
                rows.append(row(f"{name}: all right", [all_right(model, given.steps, judged)], "share"))
        finally:
            model.denoise.net = plain
    return rows


class Full:
    """The plain network's pictures, and times taken in turn with another's."""

    def __init__(self, model: Any, steps: int, texts: Sequence[str]) -> None:
        self.model, self.steps, self.texts = model, steps, texts
        self.pictures = [self.make(i) for i in range(len(texts))]

    def make(self, i: int) -> torch.Tensor:
        return TextToImage(self.model)(self.texts[i], steps=self.steps, seed=i).pixels

    def compare(self, plain: nn.Module) -> tuple[list[float], list[float]]:
        """PSNR of every picture, and ratios of time: the same prompt one after the other, by turns first."""
        packed, psnr, seconds = self.model.denoise.net, [], {"ours": [], "plain": []}
        for i, wanted in enumerate(self.pictures):
            for name in ("ours", "plain") if i % 2 else ("plain", "ours"):
                self.model.denoise.net = plain if name == "plain" else packed
                made: list[torch.Tensor] = []
                seconds[name].append(timed(lambda i=i, made=made: made.append(self.make(i))))
                if name == "ours":
                    off = float((made[0] - wanted).square().mean())
                    psnr.append(SAME if off == 0 else -10 * torch.tensor(off).log10().item())
        self.model.denoise.net = packed
        return psnr, ratios(seconds["ours"], seconds["plain"])


def all_right(model: Model, steps: int, count: int) -> float:
    make = TextToImage(model)
    return bars(lambda texts, seeds: make(texts, steps=steps, seed=seeds[0]).pixels, count=count)["all"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="still-life", help="built-in model or folder (default still-life)")
    parser.add_argument("--repeats", type=int, default=100, help="prompts (default 100)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--judged", type=int, default=100, help="captions that the judge reads; 0 is none")
    parser.add_argument(
        "--only", action="append", default=[], help="a method by its name in the table; repeat"
    )
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    arguments = parser.parse_args()
    given = Options(arguments.model, arguments.repeats, arguments.steps, arguments.device, arguments.dry)
    about, model = machine(given.device), open_model(given.model, device=given.device)
    rows = measure(model, given, arguments.only, arguments.judged)
    finish("quantisation", "Packed weights", rows, about, given)


if __name__ == "__main__":
    main()
