"""What is shared gives the same pictures: a batch that is planned, LoRAs by the row, one picture by two processes.

`batch` plans and makes rows that share prompts, at once and one by one. `loras` makes eight pictures of the built-in
UNet in one batch, each under a LoRA of its own, and one by one; the LoRAs are random, of rank 16 for its attention.
`ulysses` makes a picture in one process and in two. Differences are the greatest of all channels, of 255.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Options, Row, finish, interleave, machine, ratios, row, timed
from PIL import Image, ImageChops
from safetensors.torch import save_file
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.row_loras import LoraStore
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor

PROMPTS = ("a red cube", "a blue sphere", "a green cone", "a yellow mug", "a white torus")
SEEDS = 4
LORAS = 8
RANK = 16


def called(*words: str) -> str:
    command = [sys.executable, "-m", "sfumato.app", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def apart(one: Path, other: Path) -> int:
    both = ImageChops.difference(*(Image.open(file).convert("RGB") for file in (one, other)))
    return max(high for _, high in both.getextrema())


def batch(folder: Path, steps: int) -> list[Row]:
    """Rows in the worst order: each prompt comes back after all others."""
    rows = [{"prompt": prompt, "seed": seed, "steps": steps} for seed in range(SEEDS) for prompt in PROMPTS]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    plan = json.loads(called("batch", "run", str(file), "-o", str(folder / "plan"), "--dry-run", "--json"))
    together, single = folder / "together", folder / "single"
    called("batch", "run", str(file), "-o", str(together))
    called("batch", "run", str(file), "-o", str(single), "--per-batch", "1")
    far = [apart(one, single / one.name) for one in sorted(together.glob("0*.png"))]
    return [
        *(row(f"batch of {len(rows)} rows: {name}", [value], "times") for name, value in counts(plan)),
        row(f"batch of {len(rows)} rows: difference from one by one", far, "of 255", bar="<= 1"),
    ]


def counts(plan: dict[str, Any]) -> list[tuple[str, int]]:
    found = []
    for key, name in {"loads": "models opened", "encodings": "prompts encoded"}.items():
        found += [(name, plan[key]), (f"{name}, one call per row", plan[key] + plan["saved"][key])]
    return found


def loras(folder: Path, steps: int, repeats: int) -> list[Row]:
    model = open_model("still-life-unet")
    store, pipe = LoraStore(model), TextToImage(model)
    for index in range(LORAS):
        store.add(f"{index}", random_lora(model.denoise.net, index, folder / f"{index}.safetensors"))

    def together() -> Tensor:
        run = pipe.encode("a red cube", steps=steps, seed=0, count=LORAS)
        with store.rows([{f"{index}": 1.0} for index in range(LORAS)]):
            return pipe.sample(run)

    def alone() -> Tensor:
        found = []
        for index in range(LORAS):
            run = pipe.encode("a red cube", steps=steps, seed=index)
            with store.rows([{f"{index}": 1.0}]):
                found.append(pipe.sample(run))
        return torch.cat(found)

    def plain() -> Tensor:
        return pipe.sample(pipe.encode("a red cube", steps=steps, seed=0, count=LORAS))

    runs: dict[str, Callable[[], Tensor]] = {"together": together, "alone": alone, "plain": plain}
    ours, theirs, without = (pixels(pipe, run()) for run in runs.values())
    seconds = interleave(runs, repeats=repeats)
    name = f"{LORAS} LoRAs in one batch"
    return [
        row(f"{name}: difference from one by one", far(ours, theirs), "of 255", bar="<= 1"),
        row(f"{name}: difference from none", far(ours, without), "of 255"),
        row(f"{name}: one by one / together", ratios(seconds["alone"], seconds["together"]), "x"),
        row(f"{name}: together / without LoRAs", ratios(seconds["together"], seconds["plain"]), "x"),
    ]


def random_lora(net: torch.nn.Module, seed: int, file: Path) -> Path:
    rng, state = torch.Generator().manual_seed(seed), {}
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, into = layer.weight.shape
            state[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, into, generator=rng) / into**0.5
            state[f"unet.{name}.lora_B.weight"] = torch.randn(out, RANK, generator=rng) * 0.05
    save_file(state, file)
    return file


def pixels(pipe: TextToImage, latents: Tensor) -> Tensor:
    return (pipe.decode(latents).clamp(0, 1) * 255).round()


def far(one: Tensor, other: Tensor) -> list[float]:
    return (one - other).abs().flatten(1).amax(1).tolist()


def ulysses(folder: Path, steps: int) -> list[Row]:
    asked = ("generate", "a red cube", "--seed", "1", "--steps", f"{steps}", "--quiet")
    one, two = folder / "one.png", folder / "two.png"
    alone = timed(lambda: called(*asked, "-o", str(one)))
    shared = timed(lambda: called(*asked, "-o", str(two), "--parallel", "ulysses=2"))
    return [
        row("ulysses=2: difference from one process", [apart(one, two)], "of 255", bar="<= 1"),
        row("ulysses=2: time / one process's, start included", [shared / alone], "x"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="rounds that are timed (default 3)")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps (default 8)")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    asked = parser.parse_args()
    given = Options("still-life", asked.repeats, asked.steps, "cpu", asked.dry)
    about = machine()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = [*batch(folder, given.steps), *loras(folder, given.steps, given.repeats)]
        rows += ulysses(folder, given.steps)
    finish("sharing", "What is shared", rows, about, given)


if __name__ == "__main__":
    main()
