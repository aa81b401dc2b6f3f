"""Linear self-attention in the built-in UNet: pictures before it was taught and after, beside those of the teacher.

*All right* is the share of held-out captions of whose pictures a judge reads every word right.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import harness
from sfumato.assets.recipes.measure import bars, prompts
from sfumato.pipelines.converts.linfusion import LinFusion
from sfumato.pipelines.loading import find_model, open_model
from sfumato.pipelines.protocols import Model
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor

NAME = "still-life-unet"


def pictures(model: Model, texts: list[str], seeds: list[int]) -> Tensor:
    import torch

    make = TextToImage(model)
    own = model.defaults
    made = [
        make(text, width=own.width, height=own.height, steps=own.steps, seed=seed).pixels
        for text, seed in zip(texts, seeds, strict=True)
    ]
    return torch.cat(made)


def likeness(a: Tensor, b: Tensor) -> float:
    """Mean PSNR, decibels."""
    errors = (a - b).square().flatten(1).mean(1).tolist()
    return sum(-10 * math.log10(max(error, 1e-10)) for error in errors) / len(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="taught layers (sfumato train linfusion)")
    parser.add_argument("--prompts", type=int, default=20, help="held-out captions (default 20)")
    given = parser.parse_args()
    about = harness.machine()
    texts, seeds = list(prompts(given.prompts)), list(range(given.prompts))
    models = {name: open_model(find_model(NAME)) for name in ("teacher", "untaught", "taught")}
    LinFusion()(models["untaught"].denoise.net)
    LinFusion(given.folder)(models["taught"].denoise.net)
    made = {name: pictures(model, texts, seeds) for name, model in models.items()}
    right = {
        name: bars(lambda said, at, m=model: pictures(m, list(said), list(at)), count=given.prompts, batch=4)[
            "all"
        ]
        for name, model in models.items()
    }
    near = {name: likeness(made[name], made["teacher"]) for name in ("untaught", "taught")}
    told = (
        f"{given.prompts} held-out captions: pictures {near['taught']:.1f} dB from the teacher's "
        f"({near['untaught']:.1f} dB untaught); all right {100 * right['taught']:.0f} % "
        f"(teacher {100 * right['teacher']:.0f} %, untaught {100 * right['untaught']:.0f} %)"
    )
    print(told)
    harness.effect(
        "linfusion", "pictures as good, at cost and memory linear in pixels, up to 16K", told, about
    )


if __name__ == "__main__":
    main()
