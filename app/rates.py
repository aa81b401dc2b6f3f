"""How fast this machine is: a few products, convolutions and copies, measured once in about a second and remembered.

The file is `costs.json` in the user's cache folder; a row belongs to a device, its number type, the threads and torch.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import write_text

if TYPE_CHECKING:
    from torch import Tensor

FILE = "costs.json"
KINDS = ("convolution", "product", "attention", "moved")
"""Operations per second, and bytes written per second."""
OWN = ("bytewise", "winograd", "dense")
"""Of our own kernels, which are for float32 on a processor."""
SHORTEST = 0.05
"""Seconds for which each is repeated."""


def costs_file() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("sfumato", appauthor=False)) / FILE


def rates(device: str, dtype: str, *, anew: bool = False) -> dict[str, float]:
    """Per second, by kind; measured if nobody has yet. A file that can't be written is only slower next time."""
    key, file = row_key(device, dtype), costs_file()
    known = _read(file)
    found = known.get(key)
    if (
        not anew
        and isinstance(found, dict)
        and all(_positive(found.get(kind)) for kind in kinds(device, dtype))
    ):
        return {kind: float(found[kind]) for kind in kinds(device, dtype)}
    made = measured(device, dtype)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**known, key: made}, indent=1) + "\n")
    except OSError:
        return made
    return made


def kinds(device: str, dtype: str) -> tuple[str, ...]:
    return (*KINDS, *OWN) if device == "cpu" and dtype == "float32" else KINDS


def row_key(device: str, dtype: str) -> str:
    import torch

    name = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return f"{name}, {dtype}, torch {torch.__version__}"


def seconds(work: Mapping[str, float], per_second: Mapping[str, float]) -> float:
    return sum(amount / per_second[kind] for kind, amount in work.items())


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def measured(device: str, dtype: str) -> dict[str, float]:
    """Shapes of a middle layer of a middling network."""
    import torch
    from torch.nn import functional as F

    kind, large = getattr(torch, dtype), device.startswith("cuda")
    side, width = (64, 640) if large else (32, 320)
    rows = 4096 if large else 1024

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(kind)

    x, w = make(2, width, side, side), make(width, width, 3, 3)
    a, b = make(rows, width), make(4 * width, width)
    q = make(2, 8, rows, 64)
    big = make(2, width, 2 * side, 2 * side)
    with torch.no_grad():
        found = {
            "convolution": _per_second(lambda: F.conv2d(x, w, padding=1), 2.0 * x.numel() * 9 * width, large),
            "product": _per_second(lambda: F.linear(a, b), 2.0 * a.numel() * 4 * width, large),
            "attention": _per_second(
                lambda: F.scaled_dot_product_attention(q, q, q), 4.0 * q.numel() * rows, large
            ),
            "moved": _per_second(lambda: F.silu(big), float(big.nbytes), large),
        }
        return found | (_own(x, a) if kinds(device, dtype) != KINDS else {})


def _own(x: Tensor, a: Tensor) -> dict[str, float]:
    """Of our own kernels, at the same pictures and rows."""
    from torch import nn

    from ..kernels.dense import DenseLinear
    from ..kernels.native.around import available as native
    from ..kernels.quant.int8 import available
    from ..kernels.quant.layers import int8
    from ..kernels.winograd import WinogradConv2d

    width = a.shape[1]
    around = WinogradConv2d(nn.Conv2d(width, width, 3, padding=1))
    plain = nn.Linear(width, 4 * width)
    eight = plain if available() else (int8(plain) or plain)
    dense = plain if native() else DenseLinear(plain)
    return {
        "bytewise": _per_second(lambda: eight(a), 2.0 * a.numel() * 4 * width, False),
        "dense": _per_second(lambda: dense(a), 2.0 * a.numel() * 4 * width, False),
        "winograd": _per_second(lambda: around(x), 2.0 * x.numel() * 9 * width, False),
    }


def _per_second(run: Callable[[], object], amount: float, on_gpu: bool) -> float:
    import torch

    run()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < SHORTEST or best == float("inf"):
        start = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return amount / max(best, 1e-9)
