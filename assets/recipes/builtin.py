"""Train a built-in model and write it to `assets/models/`: what `sfumato train builtin NAME` runs.

Stages share one work folder: `vae` and `judge` stand alone, `still-life` and `still-life-unet` need the autoencoder.
Running a stage again goes on from its last stable checkpoint with a new time budget.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionInpaintPipeline,
)

from ...pipelines.bridges import open_bridge, with_bridge
from ...pipelines.loading import open_model
from ...pipelines.protocols import Model
from ...pipelines.text_to_image import TextToImage
from . import bridge, flow, judge, unet, vae
from .captions import tokenizer_for
from .fitting import best_device
from .latents import encoded
from .learning.microdit import MicroDit
from .learning.repa import Repa
from .measure import bars, prompts, sheet
from .pool import crowded

MODELS = Path(__file__).parent.parent / "models"
LICENCE = "Apache-2.0"
SHIFT = 3.0
"""Of the flow model's sampling times towards noise, where the layout is settled."""
GENERATORS = ("still-life", "still-life-unet")


def train(
    name: str,
    *,
    minutes: float,
    work: Path,
    scenes: int = 16384,
    every_task: bool | None = None,
    repa: Repa | None = None,
    microdit: MicroDit | None = None,
) -> Path:
    """Train `name` for `minutes` and return the folder it was written to. `work` keeps pools and checkpoints.

    `every_task`: the whole mixture of `tasks.py` instead of text to image alone; None means "where there is a GPU".
    `repa`, `microdit`: options of the flow recipe. A generator whose `work` holds no autoencoder begins with the
    shipped one, and with the weights and the tokenizer of the shipped generators.
    """
    every_task = best_device().type == "cuda" if every_task is None else every_task
    stages: dict[str, Callable[[], Path]] = {
        "vae": lambda: _vae(work, minutes, scenes, every_task),
        "judge": lambda: _judge(work, minutes),
        "still-life": lambda: _flow(
            work,
            scenes,
            flow.train(
                work,
                minutes=minutes,
                scenes=scenes,
                every_task=every_task,
                repa=repa,
                microdit=microdit,
                start=_start(work, name),
            ),
        ),
        "still-life-unet": lambda: _unet(
            work,
            scenes,
            unet.train(
                work,
                minutes=minutes,
                scenes=scenes,
                start=_start(work, name),
            ),
        ),
        "still-life-llama": lambda: _bridge(work, minutes, scenes),
    }
    if name not in stages:
        raise ValueError(f"name: {name!r} is no built-in model; choose one of {', '.join(stages)}")
    work.mkdir(parents=True, exist_ok=True)
    if name in (*GENERATORS, "still-life-llama") and not (work / "vae").exists():
        begin_with_shipped(work)
    return stages[name]()


def begin_with_shipped(work: Path) -> None:
    """Put the shipped autoencoder, tokenizer and generators into a new work folder."""
    shipped = MODELS / "still-life"
    if not (shipped / "vae").is_dir():
        raise ValueError(f"name: {work} holds no autoencoder and none is shipped; train `vae` first")
    for name in GENERATORS:
        if (MODELS / name).is_dir():
            shutil.copytree(MODELS / name, work / "start" / name, dirs_exist_ok=True)
    shutil.copytree(shipped / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    shutil.copytree(shipped / "vae", work / "vae")


def _start(work: Path, name: str) -> Path | None:
    folder = work / "start" / name
    return folder if folder.is_dir() else None


def _vae(work: Path, minutes: float, scenes: int, every_task: bool) -> Path:
    vae.train(work, minutes=minutes, scenes=min(scenes, 4096), every_task=every_task)
    return work / "vae"


def _judge(work: Path, minutes: float) -> Path:
    judge.train(work, minutes=minutes)
    return _replace(work / "judge", MODELS / "judge")


def _flow(work: Path, scenes: int, trained: flow.Flow) -> Path:
    tokenizer = tokenizer_for(work, crowded(work, scenes))
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=_codec(work),
        text_encoder=trained.pooled,
        tokenizer=tokenizer,
        text_encoder_2=trained.sequence,
        tokenizer_2=tokenizer,
        transformer=trained.transformer,
    )
    return _write("still-life", pipeline, work, scenes)


def _unet(work: Path, scenes: int, trained: unet.Unet) -> Path:
    pipeline = StableDiffusionInpaintPipeline(
        vae=_codec(work),
        text_encoder=trained.text,
        tokenizer=tokenizer_for(work, crowded(work, scenes)),
        unet=trained.unet,
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _write("still-life-unet", pipeline, work, scenes)


def _bridge(work: Path, minutes: float, scenes: int) -> Path:
    base = MODELS / "still-life-unet"
    if not base.is_dir():
        raise ValueError("name: still-life-llama is a bridge to still-life-unet; train that first")
    folder = bridge.train(work, minutes=minutes, base=base, scenes=scenes)
    if (MODELS / "judge").exists():
        report(folder, with_bridge(open_model(base), open_bridge(folder)))
    return _replace(folder, MODELS / folder.name)


def _codec(work: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(work / "vae")


def preview(work: Path, scenes: int) -> list[list[float]]:
    """The linear map from latent channels (and a constant) to RGB that best explains the pool: 17 rows of 3."""
    data = crowded(work, scenes)
    z = encoded(work, _codec(work), data, "crowded")[: min(256, len(data))].float()
    small = torch.nn.functional.interpolate(data.batch(torch.arange(len(z))), z.shape[2:], mode="area")
    known = torch.cat([z, torch.ones_like(z[:, :1])], 1).permute(0, 2, 3, 1).reshape(-1, z.shape[1] + 1)
    rgb = torch.linalg.lstsq(known, small.permute(0, 2, 3, 1).reshape(-1, 3)).solution
    return [[round(v, 5) for v in row] for row in rgb.tolist()]


def _write(
    name: str, pipeline: FluxPipeline | StableDiffusionInpaintPipeline, work: Path, scenes: int
) -> Path:
    """Save in half precision with the card, measure on held-out captions, draw the sample sheet."""
    folder = work / name
    pipeline.to(torch.float16).save_pretrained(folder)
    card = {
        "name": name,
        "steps": 20,
        "guidance": 5.0,
        "width": 128,
        "height": 128,
        "sampler": "ddim" if name == "still-life" else "dpmpp-2m",
        "schedule": "flow-shift" if name == "still-life" else "uniform",
        "licence": LICENCE,
        "preview": preview(work, scenes),
    }
    (folder / "sfumato.json").write_text(json.dumps(card, indent=1) + "\n")
    if (MODELS / "judge").exists():
        report(folder, open_model(folder))
    return _replace(folder, MODELS / name)


def report(folder: Path, model: Model) -> dict[str, dict[str, float]]:
    """Measure a generator on held-out captions and reserved pairs; a report and a sheet stand beside its folder."""
    make = TextToImage(model)

    def generate(texts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        return make(texts, seed=seeds[0]).pixels

    found = {split: bars(generate, split=split) for split in ("test", "reserved")}
    (folder.parent / f"{folder.name}-report.json").write_text(json.dumps(found, indent=1) + "\n")
    texts = prompts(24)
    sheet(make(texts, seed=0).pixels, texts, folder.parent / f"{folder.name}-sheet.png")
    print(found, flush=True)
    return found


def _replace(source: Path, target: Path) -> Path:
    """Copy a finished model into the package; the old one goes only when the new one is whole."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target
