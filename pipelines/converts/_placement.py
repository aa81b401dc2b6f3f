"""What the converts that move weights share: which file holds what, and the budget in bytes."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import nn

from ...kernels.offload import Rest, Stored, offload
from ...kernels.residence import Pool
from ..placement import stored_in
from ..weights import weight_files

DEVICES = ("cpu", "cuda", "mps", "xpu")


def check_budget(budget: float) -> None:
    if not math.isfinite(budget) or budget < 0:
        raise ValueError(f"budget must be 0 or more GB, got {budget}")


def check_device(device: str) -> None:
    try:
        known = not device or torch.device(device).type in DEVICES
    except RuntimeError:
        known = False
    if not known:
        raise ValueError(f"device must be cpu, cuda, cuda:1, mps or xpu, or empty, got {device!r}")


def move(net: nn.Module, budget: float, rest: Rest) -> nn.Module:
    """The network under a budget in GB, which all of its weights may fit into."""
    offload(net, Pool(int(budget * 1e9), rest.device), rest)
    return net


def device_of(net: nn.Module, device: str) -> torch.device:
    """The device that is named, or the network's own."""
    if device:
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
            raise ValueError(
                f"device must be one of this machine, got {device!r}; leave it out to stay where the network is"
            ) from error
    return next((weight.device for weight in net.parameters()), torch.device("cpu"))


def stored_weights(folder: str) -> dict[str, Stored]:
    """What the component's folder holds; nothing for an empty name."""
    return stored_in(weight_files(Path(folder).expanduser()).files) if folder else {}


def scratch_folder(folder: str) -> Path:
    return Path(folder).expanduser() if folder else Path(tempfile.gettempdir())
