"""A picture from a prompt, end to end: against the bare network calls, against plain diffusers, and in a cold process.

- *against the bare network*: a warm call of `TextToImage` and the encoding of its PNG, over a loop of the very network
  calls it made, recorded before. What is above 1 is everything else: text, schedule, guidance, sampler, decoder, file.
- *against diffusers*: the same checkpoint, prompt, seed, steps, guidance and number type through `FluxPipeline`.
- *cold*: a fresh process from its start to the written file, as by `sfumato generate`, and its stages.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Options, Row, finish, interleave, machine, options, ratios, row, timed
from sfumato.pipelines.loading import find_folder, open_model
from sfumato.pipelines.protocols import Model
from sfumato.pipelines.text_to_image import Images, TextToImage

PROMPT = "a large green cube, in snow"
SEED = 7
COLD_REPEATS = 3
"""Fresh processes; each takes seconds."""


def ours(model: Model, steps: int) -> Callable[[], Images]:
    return lambda: TextToImage(model)(PROMPT, seed=SEED, steps=steps)


def end_to_end(model: Model, steps: int) -> Callable[[], object]:
    """With the picture encoded as a PNG, in memory: disks differ."""
    make = ours(model, steps)
    return lambda: make().images[0].save(io.BytesIO(), "PNG")


def bare_network(model: Model, steps: int) -> Callable[[], None]:
    """The network calls of one picture, nothing else: recorded once, then repeated as they were."""
    net, calls = model.denoise.net, []

    def keep(module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((args, named))

    handle = net.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        ours(model, steps)()
    finally:
        handle.remove()

    @torch.no_grad()
    def run() -> None:
        for args, named in calls:
            net(*args, **named)

    return run


def plain_diffusers(model: Model, folder: Path, steps: int, device: str) -> Callable[[], Any]:
    """The same picture through diffusers' own pipeline."""
    from diffusers import FluxPipeline

    dtype = next(model.denoise.net.parameters()).dtype
    pipe = FluxPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True).to(device)
    pipe.set_progress_bar_config(disable=True)
    own = model.defaults
    guided = own.guidance != 1 and not pipe.transformer.config.guidance_embeds
    extra = (
        {"negative_prompt": "", "true_cfg_scale": own.guidance}
        if guided
        else {"guidance_scale": own.guidance}
    )

    def run() -> Any:
        generator = torch.Generator().manual_seed(SEED)
        return pipe(
            PROMPT,
            width=own.width,
            height=own.height,
            num_inference_steps=steps,
            max_sequence_length=model.limits.tokens,
            generator=generator,
            **extra,
        ).images[0]

    return run


def difference(a: Any, b: Any) -> float:
    """Largest difference of two pictures, 0..255."""
    from PIL import ImageChops

    return float(max(high for _, high in ImageChops.difference(a, b).getextrema()))


def warm_rows(model: Model, given: Options) -> list[Row]:
    candidates = {"end": end_to_end(model, given.steps), "bare": bare_network(model, given.steps)}
    folder = find_folder(given.model)
    theirs = None
    if model.family == "flux":
        theirs = plain_diffusers(model, folder, given.steps, given.device)
        candidates |= {"ours": ours(model, given.steps), "diffusers": theirs}
    seconds = interleave(candidates, repeats=given.repeats)
    bare = ratios(seconds["end"], seconds["bare"])
    rows = [
        row("warm picture, prompt to PNG", seconds["end"], "s", headline=True),
        row("its network calls alone", seconds["bare"], "s"),
        row("warm picture / its network calls", bare, "x", bar="<= 1.15", headline=True),
    ]
    if theirs is not None:
        apart = difference(ours(model, given.steps)().images[0], theirs())
        faster = ratios(seconds["diffusers"], seconds["ours"])
        rows.append(row("plain diffusers, the same picture", seconds["diffusers"], "s"))
        rows.append(row("plain diffusers / ours", faster, "x", bar=">= 1", headline=True))
        rows.append(row("largest difference from diffusers' picture", [apart], "of 255"))
    return rows


def cold_rows(given: Options) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return _cold_rows(given, Path(folder))


def _cold_rows(given: Options, folder: Path) -> list[Row]:
    script = Path(__file__).with_name("cold.py")
    stages: list[dict[str, float]] = []
    command = [sys.executable, "-m", "sfumato.app", "generate", PROMPT, "--seed", str(SEED), "--quiet"]
    command += [
        "--model",
        given.model,
        "--steps",
        str(given.steps),
        "--device",
        "cpu",
        "-o",
        str(folder / "a.png"),
    ]
    staged = [sys.executable, str(script), given.model, PROMPT, str(given.steps), str(folder / "b.png")]
    for _ in range(COLD_REPEATS):
        whole = timed(lambda: subprocess.run(command, check=True, capture_output=True))
        done = subprocess.run(staged, check=True, capture_output=True, text=True)
        stages.append({"sfumato generate, cold process": whole, **json.loads(done.stdout.splitlines()[-1])})
    names = list(stages[0])
    rows = [row(names[0], [s[names[0]] for s in stages], "s", headline=True)]
    return rows + [row(f"of a cold process: {name}", [s[name] for s in stages], "s") for name in names[1:]]


def main() -> None:
    given = options((__doc__ or "").partition("\n")[0])
    about = machine(given.device)
    dtype = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
    rows = warm_rows(open_model(given.model, device=given.device, dtype=dtype), given)
    if given.device == "cpu":
        rows += cold_rows(given)
    finish("generate", f"A picture from {given.model}, {given.steps} steps", rows, about, given)


if __name__ == "__main__":
    main()
