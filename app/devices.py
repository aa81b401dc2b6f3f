"""The devices of this machine, by the names that requests give them."""

from __future__ import annotations

from .faults import refuse


def devices_here() -> list[str]:
    """Devices that jobs run on here, the best first."""
    import torch

    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have. Of `auto` and cpu there is no question."""
    if name in ("auto", "cpu"):
        return
    import torch

    kind, _, index = name.partition(":")
    here = [*devices_here()[:-1], *(f"xpu:{i}" for i in range(torch.xpu.device_count()))]
    if f"{kind}:{index or 0}" not in here and name not in here:
        told = ", ".join(here) or "no GPU"
        raise refuse(
            "device",
            name,
            f"is not there (torch sees {told}); leave --device out, or see `sfumato doctor`",
        )
