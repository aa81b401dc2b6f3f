"""Add-ons beside the backbone (arXiv:2407.02031): LoRAs that load while the first steps run, ControlNets by a thread.

`load`: time to a picture with a LoRA of high rank for the transformers of SD 1.5's UNet, with random weights.
The file is dropped from the system's cache before each run, `--warm` leaves it there. `plain` is the run without,
`live` what --lora does (peft's adapters), `before` the same weights merged before the first step, `late` beside the
first steps. `at`: pictures of a built-in model with a LoRA that joins later and later, against those with it from the
first step: the one that came with the bridge `still-life-llama`. `control`: a step under a ControlNet, in turn and
beside.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import harness
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from sfumato.pipelines.bridges import find_bridge, open_bridge, with_bridge
from sfumato.pipelines.converts._adapters import put_on, take_off
from sfumato.pipelines.converts._lora_files import read_lora
from sfumato.pipelines.doors.architectures import architecture
from sfumato.pipelines.families._denoiser import NetDenoiser
from sfumato.pipelines.families._unets import unet_output
from sfumato.pipelines.guidance.none import none
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches.controlnet import ControlNet
from sfumato.pipelines.patches.swiftdiffusion import SwiftDiffusion
from sfumato.pipelines.paths import vp_from_config
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.protocols import Cond, Conds, Patch
from sfumato.pipelines.schedules.uniform import Uniform
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor, nn

PROMPTS = (
    *("a red sphere on top of a blue cube, in snow", "a green cone", "a yellow torus left of a white cube"),
    *(
        "a purple cylinder in a room at night",
        "an orange pyramid on grass",
        "a black sphere behind a pink cone",
    ),
)
PLACES = (0, 1, 2, 3, 5, 8, 12, 16, 20)
"""Steps without the LoRA, of 20; 20 is the model without."""


def unet() -> UNet2DConditionModel:
    """SD 1.5's, with random weights."""
    with torch.device("meta"):
        net = UNet2DConditionModel.from_config(dict(architecture("sd15").parts["unet"].config or {}))
    noise = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    net = net.to_empty(device="cpu").eval().requires_grad_(False)
    for weight in net.parameters():
        weight.view(-1).copy_(noise.repeat(-(-weight.numel() // len(noise)))[: weight.numel()])
    return net


def lora(net: nn.Module, rank: int, file: Path) -> None:
    """Factors in half precision for every linear layer of its transformers."""
    found = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear) and ".transformer_blocks." in name:
            found[f"unet.{name}.lora_A.weight"] = torch.randn(rank, layer.in_features).half() * 0.01
            found[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, rank).half() * 0.01
    save_file(found, file)


def forget(file: Path) -> None:
    """Out of the system's cache, so that it comes from the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pipeline(net: Any, *patches: Patch) -> Callable[[int, int], Tensor]:
    """(steps, side in pixels) -> latents, without guidance."""
    path = vp_from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
    call = partial(unet_output, path=path)
    pipe = Pipeline(NetDenoiser(net, path, torch.float32, "epsilon", call), guidance=none, patches=patches)
    text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1))

    def make(steps: int, side: int) -> Tensor:
        x = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(2))
        return pipe(x, Conds(Cond("pos", {"text": text})), Uniform()(steps, path))

    return make


def load(given: argparse.Namespace) -> None:
    net = unet()
    with TemporaryDirectory(dir=given.folder) as folder:
        file = Path(folder) / "lora.safetensors"
        lora(net, given.rank, file)
        loras, size = ((str(file), 0.7),), file.stat().st_size

        def made(*patches: Patch) -> None:
            if not given.warm:
                forget(file)
            pipeline(net, *patches)(given.steps, given.side)

        def live() -> None:
            if not given.warm:
                forget(file)
            put_on(net, "own", read_lora(file, {"unet": net}, "unet").parts["unet"])
            pipeline(net)(given.steps, given.side)
            take_off(net, ["own"])

        taken = harness.interleave(
            {
                "without": made,
                "live": live,
                "before": lambda: made(SwiftDiffusion(0, loras)),
                "late": lambda: made(SwiftDiffusion(given.at, loras)),
            },
            repeats=given.repeats,
        )
    where = "in the system's cache" if given.warm else "on the disk"
    rows = [harness.row(name, seconds, "s") for name, seconds in taken.items()]
    rows += [
        harness.row("before / late", harness.ratios(taken["before"], taken["late"]), "x"),
        harness.row("live / late", harness.ratios(taken["live"], taken["late"]), "x", headline=True),
    ]
    title = (
        f"A LoRA of rank {given.rank} ({size / 1e6:.0f} MB, {where}) on SD 1.5's UNet, {given.steps} steps of "
        f"{given.side}x{given.side}, joining after {given.at}"
    )
    told("swiftdiffusion-warm" if given.warm else "swiftdiffusion", title, rows, given)


def at(given: argparse.Namespace) -> None:
    """Relative distance of latents, mean over prompts."""
    plain, folder = open_model("still-life-unet"), find_bridge("still-life-llama")
    weights = {name: weight.clone() for name, weight in plain.denoise.net.state_dict().items()}
    model = with_bridge(plain, open_bridge(folder))
    model.denoise.net.load_state_dict(weights)  # the bridge has merged its LoRA
    loras = ((str(folder / "loras.safetensors"), 1.0),)

    def made(place: int) -> Tensor:
        patches = (SwiftDiffusion(place, loras),) if place < PLACES[-1] else ()
        make = TextToImage(model, patches=patches)
        return torch.cat([make(p, steps=PLACES[-1], seed=i).pixels for i, p in enumerate(PROMPTS)])

    full = made(0)
    rows = []
    for place in PLACES[1:]:
        error = (made(place) - full).square().flatten(1).mean(1)
        decibels = [float(-10 * e.log10()) for e in error]
        rows.append(harness.row(f"PSNR, LoRA after {place} of {PLACES[-1]} steps", decibels, "dB"))
    told(
        "swiftdiffusion-at",
        "still-life-unet with the LoRA of still-life-llama, which joins later",
        rows,
        given,
    )


def control(given: argparse.Namespace) -> None:
    net = unet()
    adapter = ControlNetModel.from_unet(net).eval().requires_grad_(False)
    image = torch.rand(1, 3, given.side, given.side, generator=torch.Generator().manual_seed(3))
    runs = {
        "in turn": pipeline(net, ControlNet(adapter, image)),
        "beside": pipeline(net, ControlNet(adapter, image, beside=True)),
        "without": pipeline(net),
    }
    taken = harness.interleave(
        {name: partial(run, given.steps, given.side) for name, run in runs.items()}, repeats=given.repeats
    )
    rows = [harness.row(name, seconds, "s") for name, seconds in taken.items()]
    rows.append(harness.row("in turn / beside", harness.ratios(taken["in turn"], taken["beside"]), "x"))
    title = f"SD 1.5's UNet under a ControlNet, {given.steps} steps of {given.side}x{given.side}"
    told(f"swiftdiffusion-control-{torch.get_num_threads()}", title, rows, given)


def told(name: str, title: str, rows: list[harness.Row], given: argparse.Namespace) -> None:
    about = harness.machine()
    print(title)
    for line in rows:
        print(line)
    if not given.dry:
        print(harness.write(name, title, rows, about))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("load", "at", "control"))
    parser.add_argument("--rank", type=int, default=128, help="of the LoRA (default 128)")
    parser.add_argument("--at", type=int, default=3, help="steps without it (default 3)")
    parser.add_argument("--steps", type=int, default=8, help="of a picture (default 8)")
    parser.add_argument("--side", type=int, default=256, help="of the picture, pixels (default 256)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--warm", action="store_true", help="leave the file in the system's cache")
    parser.add_argument("--folder", type=Path, help="where the file is made for the time of the run")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    given = parser.parse_args()
    {"load": load, "at": at, "control": control}[given.what](given)


if __name__ == "__main__":
    main()
