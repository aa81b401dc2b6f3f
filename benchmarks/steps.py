"""Seconds per step at the size of Stable Diffusion 1.5 (random weights, 512 x 512, guided): ours and plain diffusers.

Needs 5 GB of disk in --folder. Both run the same steps of DDIM on the same weights in memory, in turn, and neither
decodes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import harness
import torch
from checkpoints import build
from diffusers import DDIMScheduler, StableDiffusionPipeline
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.paths import begin
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.protocols import Conds, Model
from sfumato.pipelines.samplers.ddim import Ddim

SIDE = 512
SCALE = 7.5


def sampled(model: Model, steps: int) -> torch.Tensor:
    """Latents [1,4,64,64] of one prompt, as the text-to-image pipeline makes them before decoding."""
    conds = Conds(model.encode(["a cube"], key="pos"), model.encode([""], key="neg"))
    noise = SeededNoise((0,), model.latent_shape(SIDE, SIDE))
    ts = model.default_schedule(SIDE, SIDE)(steps, model.denoise.path)
    x = begin(model.denoise.path, noise(), ts[0])
    return Pipeline(model.denoise, Ddim(), Cfg(SCALE))(x, conds, ts, noise=noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is built, and kept")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--steps", type=int, default=2, help="steps of each run (default 2)")
    given = parser.parse_args()
    if not (given.folder / "model_index.json").exists():
        build(given.folder, "sd15", torch.float32)
    about, model = harness.machine(), open_model(given.folder, dtype=torch.float32, device="cpu")
    theirs = StableDiffusionPipeline.from_pretrained(
        given.folder, unet=model.denoise.net, safety_checker=None, requires_safety_checker=False
    )
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    taken = harness.interleave(
        {
            "ours": lambda: sampled(model, given.steps),
            "diffusers": lambda: theirs(
                "a cube", guidance_scale=SCALE, num_inference_steps=given.steps, output_type="latent"
            ),
        },
        repeats=given.repeats,
    )
    rows = [
        harness.row("guided step, 512 px, SD 1.5", [s / given.steps for s in taken["ours"]], "s"),
        harness.row(
            "diffusers / ours, the same steps",
            harness.ratios(taken["diffusers"], taken["ours"]),
            "x",
            bar=">= 1",
        ),
    ]
    for line in rows:
        print(line)
    print(harness.write("steps", "Steps at the size of SD 1.5", rows, about))


if __name__ == "__main__":
    main()
