"""What pictures of held-out captions are worth: beside those of full precision, and to the judge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import harness
import torch
from harness import Row
from sfumato.assets.recipes.measure import bars, prompts
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor

AT_ONCE = 20
SAME = 100.0
"""Decibels that stand for a picture without a difference."""


def pictures(pipe: TextToImage, count: int, steps: int) -> Tensor:
    """[count,3,H,W] in 0..1: the same captions and seeds for every pipeline."""
    texts = prompts(count, seed=None)
    some = (range(count)[at : at + AT_ONCE] for at in range(0, count, AT_ONCE))
    return torch.cat([pipe([texts[i] for i in part], steps=steps, seed=part[0]).pixels for part in some])


def psnr(made: Tensor, full: Tensor) -> list[float]:
    """Of each picture, decibels."""
    errors = [float(error) for error in (made - full).square().flatten(1).mean(1)]
    return [-10 * math.log10(error) if error > 0 else SAME for error in errors]


def all_right(made: Tensor) -> float:
    """The share in which the judge reads every word right. Of the built-in models' pictures only."""
    return bars(lambda texts, seeds: made[seeds[0] : seeds[0] + len(texts)], count=len(made), batch=AT_ONCE)[
        "all"
    ]


def rows(name: str, made: Tensor, full: Tensor, *, judged: bool, bar: str = "") -> Sequence[Row]:
    decibels = psnr(made, full)
    worst = sorted(decibels)[len(decibels) // 10]
    found = [
        harness.row(f"{name}: PSNR", decibels, "dB", bar=bar),
        harness.row(f"{name}: PSNR of the worst tenth", [worst], "dB"),
    ]
    return [*found, harness.row(f"{name}: all right", [all_right(made)], "share")] if judged else found
