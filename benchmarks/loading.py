"""A checkpoint of SDXL's size: time to open it against reading its bytes, memory against its size, switching of LoRAs.

Weights are random, in float16, in the published architecture; two LoRAs of rank 16 act on the UNet's attention. Needs
8 GB of disk in --folder and 10 GB of memory. Bytes are read, and the folder is opened, by a fresh process each time, in
turn; imports do not count. The files are in the system's cache for both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import harness
import torch
from checkpoints import build
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from sfumato.pipelines.doors.architectures import architecture
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.loras import Loras

RANK = 16
BLOCK = 1 << 24
"""Bytes read at once."""
PAGE = 4096
"""Bytes that the system maps at once: files are mapped into memory, and what is mapped counts when it is touched."""


def prepare(folder: Path) -> None:
    """The checkpoint, and `a.safetensors` and `b.safetensors`, two LoRAs for it."""
    build(folder, "sdxl", torch.float16)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(architecture("sdxl").parts["unet"].config or {}))
    for name in ("a", "b"):
        save_file(lora(unet), folder / f"{name}.safetensors")


def lora(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Pairs for every projection of the UNet's attention, under peft's names."""
    found = {}
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attn" in name:
            found[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features).half() * 0.02
            found[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK).half() * 0.02
    return found


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def read_bytes(folder: Path) -> dict[str, float]:
    """Seconds to read every weight file into one buffer."""
    buffer, began = bytearray(BLOCK), time.perf_counter()
    for path in weight_files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return {"seconds": time.perf_counter() - began}


def open_folder(folder: Path) -> dict[str, float]:
    """Seconds to open the folder and touch all of it, the most memory that took, the slowest switch of LoRAs."""
    for facts in architecture("sdxl").parts.values():
        getattr(import_module(facts.library), facts.kind)  # imported when it is named
    before, began = memory("VmRSS"), time.perf_counter()
    model = open_model(folder, dtype=torch.float16)
    for part in model.parts.values():
        for weight in part.net.parameters():
            weight.detach().reshape(-1)[:: PAGE // weight.element_size()].sum()
    seconds, most = time.perf_counter() - began, memory("VmHWM") - before
    loras, switches = Loras(model), []
    for name in ("a", "b"):
        loras.add(name, folder / f"{name}.safetensors")
    for name in "abab":
        began = time.perf_counter()
        loras.weigh({name: 0.8})
        switches.append(time.perf_counter() - began)
    return {"seconds": seconds, "bytes": most, "switch": max(switches)}


def memory(what: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def child(what: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--folder", str(folder), "--only", what]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is built, and kept")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--only", choices=("read", "open"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps({"read": read_bytes, "open": open_folder}[given.only](given.folder)))
        return
    if not (given.folder / "model_index.json").exists():
        prepare(given.folder)
    about = harness.machine()
    child("read", given.folder)  # into the system's cache
    rounds = [(child("read", given.folder), child("open", given.folder)) for _ in range(given.repeats)]
    size = sum(path.stat().st_size for path in weight_files(given.folder))
    opened = [o["seconds"] for _, o in rounds]
    share = [o["seconds"] / r["seconds"] for r, o in rounds]
    rows = [
        harness.row("open an SDXL folder, float16, every page touched", opened, "s"),
        harness.row("opening / reading the bytes", share, "x", bar="<= 1.2", headline=True),
        harness.row("most memory / size of the weights", [o["bytes"] / size for _, o in rounds], "x", bar="<= 1.1"),
        harness.row("switch to another LoRA of rank 16", [1000 * o["switch"] for _, o in rounds], "ms", bar="< 200"),
    ]  # fmt: skip
    for line in rows:
        print(line)
    print(harness.write("loading", f"Opening {size / 1e9:.1f} GB", rows, about))


if __name__ == "__main__":
    main()
