"""What the adapters share: their settings' ranges, when they act, rows for a network's batch, and sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput

TRAIN_STEPS = 1000
"""Of every published UNet: its step k belongs to the path time (k + 1) / 1000."""


def check_settings(scale: float, start: float, end: float) -> None:
    if not 0 <= scale <= 10:
        raise ValueError(f"scale must be in 0..10, got {scale}")
    if not 0 <= start < end <= 1:
        raise ValueError(f"start and end must be 0 <= start < end <= 1, got {start} and {end}")


def check_image(image: Tensor) -> None:
    if image.ndim != 4:
        raise ValueError(f"image must be [1 or B,C,H,W], got {list(image.shape)}")
    if not 0 <= float(image.min()) <= float(image.max()) <= 1:
        raise ValueError(f"image must be in 0..1, got {float(image.min())}..{float(image.max())}")


def check_adapter(adapter: Any, kind: type) -> None:
    if not isinstance(adapter, kind):
        raise BadInput(
            "net",
            f"a {type(adapter).__name__} is no {kind.__name__}; open one from its folder, see adapters.py",
        )


def check_net(net: Any, kind: type, name: str) -> None:
    """`kind` is the class of the networks that the patch of this name acts in."""
    if not isinstance(net, kind):
        raise BadInput(
            "patches",
            f"{name} acts in a {kind.__name__}, and this model has a {type(net).__name__}; leave it out",
        )


def check_same(adapter: Any, net: Any, names: Sequence[str]) -> None:
    """Refuse an adapter whose settings of these names are not those of the model's network."""
    for name in names:
        own, wanted = _plain(adapter.config[name]), _plain(net.config[name])
        if own != wanted:
            raise BadInput(
                "net",
                f"the {type(adapter).__name__} has {name} = {own} and the model's network {wanted}; "
                "take one that was made for this model",
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_dtype(adapter: Any, x: Tensor) -> None:
    if adapter.dtype != x.dtype or adapter.device != x.device:
        raise BadInput(
            "net",
            f"the {type(adapter).__name__} is {adapter.dtype} on {adapter.device} and the model {x.dtype} on "
            f"{x.device}; open it with the model's dtype and device",
        )


def acts(start: float, end: float, time: Tensor | float) -> bool:
    """Whether path time 1..0 lies between these shares of the way to 0. Reads `time` only if it matters."""
    if start == 0 and end == 1:
        return True
    first = float(time.flatten()[0]) if isinstance(time, Tensor) else float(time)
    done = round(1 - first, 5)  # what float32 tells of a time
    return start <= done and (done < end or end == 1)


def step_time(timestep: Tensor | float) -> Tensor | float:
    """The path time of a UNet's timestep."""
    return (timestep + 1) / TRAIN_STEPS


def rows(value: Tensor, batch: int) -> Tensor:
    """[1 or B,...] for a network's batch, in which conditions follow one another with B images each."""
    if batch % len(value):
        raise BadInput(
            "image",
            f"{len(value)} control images for a batch of {batch}; give one, or one for each image that is made",
        )
    return value.repeat(batch // len(value), *[1] * (value.ndim - 1))


def plus(given: Sequence[Tensor] | None, more: Sequence[Tensor]) -> list[Tensor]:
    """What other patches add, and this one too."""
    return list(more) if given is None else [a + b for a, b in zip(given, more, strict=True)]


def same_size(image: Tensor, wanted: tuple[int, int]) -> None:
    """`wanted` is (height, width) in pixels."""
    height, width = image.shape[-2:]
    if (height, width) != wanted:
        raise BadInput(
            "image",
            f"the control image is {width}x{height}, the result {wanted[1]}x{wanted[0]}; give it that size",
        )


def no_grad(net: Any, x: Tensor) -> Any:
    """What an adapter makes of x, once per run."""
    with torch.no_grad():
        return net(x.to(net.device, net.dtype))
