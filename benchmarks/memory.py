"""What was planned against what was held: peak memory of whole runs, each in a process of its own.

The number is VmHWM, the most that counted as resident at once: heap, code, and every page of a mapped weight file that
was in the address space. Opening and planning count too.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import QUIET, Options, Row, finish, machine, row

CHILD = """
import json, sys
import torch
torch.set_num_threads(int(sys.argv[2]))
from sfumato.app.console import Console
from sfumato.app.generation import make_all, prepare
from sfumato.app.jobs import memory
from sfumato.app.local import LocalWork
from sfumato.app.requests import GenerateRequest
from pathlib import Path
request = GenerateRequest(**json.loads(sys.argv[1]))
work = LocalWork(Console(quiet=True), folder=Path(sys.argv[3]))
memory.begin("cpu")
run = prepare(request, work, timed=True)
import time
began = time.perf_counter()
make_all(run, work)
plan, net = run.estimate, run.model.denoise.net
print(json.dumps({
    "planned": plan.peak, "held": memory.peak("cpu")["ram"], "limit": plan.limit, "base": plan.base,
    "foreseen": plan.seconds, "took": time.perf_counter() - began, "changes": list(plan.changes),
    "network": sum(t.numel() * t.itemsize for t in (*net.parameters(), *net.buffers())),
    "offload": run.request.offload, "decode": run.request.decode, "batch": run.request.batch,
}))
"""
SETTINGS: dict[str, dict[str, Any]] = {
    "batch of 4": {"batch": 4, "count": 4},
    "256 px": {"width": 256, "height": 256},
    "512 px": {"width": 512, "height": 512},
    "512 px, batch of 4": {"width": 512, "height": 512, "batch": 4, "count": 4},
    "512 px, exact": {"width": 512, "height": 512, "optimize": "exact"},
    "512 px, balanced": {"width": 512, "height": 512, "optimize": "balanced"},
    "512 px, small": {"width": 512, "height": 512, "optimize": "small"},
    "512 px in stripes": {"width": 512, "height": 512, "decode": "stripes"},
    "768 px": {"width": 768, "height": 768},
    "768 px in tiles": {"width": 768, "height": 768, "decode": "tiles"},
    "1024 px": {"width": 1024, "height": 1024},
}
EIGHT = "in 8 bits"
SD_SETTINGS: dict[str, dict[str, Any]] = {
    "in stripes": {"decode": "stripes"},
    "exact": {"optimize": "exact"},
    "1 GB of weights held": {"offload": 1.0},
    "1 GB of weights held, exact": {"offload": 1.0, "optimize": "exact"},
    EIGHT: {"techniques": [{"id": "int8"}], "decode": "stripes"},
}
BUDGETS = (0.9, 0.6, 0.45)
"""Parts of what the run takes without a budget, the program itself included."""


def sd_shaped(folder: Path) -> Path:
    """A folder with the shapes of Stable Diffusion 1.5 and random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tiny_models = runpy.run_path(str(Path(__file__).resolve().parent.parent / "tests" / "tiny_models.py"))
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    words = tiny_models["tokenizer"](77)
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
    )
    parts = {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        "vae": vae,
        "text_encoder": CLIPTextModel(text),
        "tokenizer": words,
        "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }
    saved: Path = tiny_models["save"](folder, "StableDiffusionPipeline", parts)
    return saved


def held(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, json.dumps(request), str(torch.get_num_threads()), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(given: Options, folder: Path, settings: dict[str, dict[str, Any]], size: str | None) -> list[Row]:
    """Planned and held for each setting, then for budgets that are parts of what the run takes without one.

    Memory is the same on a busy machine; times are left out there.
    """
    quiet = os.getloadavg()[0] <= QUIET * (os.cpu_count() or 1)
    base = {"prompt": "a red cube", "model": given.model, "steps": given.steps, "seed": 1, "size": size}
    rows: list[Row] = []

    def add(name: str, request: dict[str, Any], bar: str) -> dict[str, Any]:
        found = [held(request, folder) for _ in range(given.repeats)]
        rows.append(row(f"{name}: held", [one["held"] / 1e9 for one in found], "GB"))
        rows.append(
            row(f"{name}: held / planned", [one["held"] / one["planned"] for one in found], "x", bar=bar)
        )
        if quiet:
            rows.append(
                row(f"{name}: time / foreseen", [one["took"] / one["foreseen"] for one in found], "x")
            )
        print(name, found[0], file=sys.stderr)
        return found[0]

    plain = add("as asked", base, "0.9..1.1")
    for name, changed in settings.items():
        found = add(name, base | changed, "0.9..1.1")
        if name == EIGHT:
            share = found["network"] / plain["network"]
            rows.append(row("network in 8 bits / in float32", [share], "x", bar="<= 0.3"))
    for part in BUDGETS:
        limit = plain["base"] + part * (plain["planned"] - plain["base"])
        add(f"budget {part:.0%} of the model", base | {"memory": limit / 1e9}, "<= 1.1")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="still-life", help="built-in model, folder, or sd15 for its shapes"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--steps", type=int, default=4, help="sampling steps (default 4)")
    parser.add_argument("--size", help="WxH of the pictures (the model's own if not given)")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        name = arguments.model
        model = str(sd_shaped(Path(work) / "model")) if name == "sd15" else name
        given = Options(model, arguments.repeats, arguments.steps, "cpu", arguments.dry)
        about = machine("cpu")
        own = SD_SETTINGS if name == "sd15" else SETTINGS
        rows = measure(given, Path(work), own, arguments.size)
    title = "Memory: planned and held" + (", shapes of Stable Diffusion 1.5" if name == "sd15" else "")
    suffix = {"still-life": "", "sd15": "-sd15", "still-life-unet": "-unet"}.get(name, "-model")
    finish(f"memory{suffix}", title, rows, about, given)


if __name__ == "__main__":
    main()
