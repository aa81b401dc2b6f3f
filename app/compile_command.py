"""`sfumato models compile`: the repeated blocks of a model as machine code, for later runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Console, table

if TYPE_CHECKING:
    import torch

    from ..pipelines.protocols import Model


def models_compile(
    console: Console,
    place: Annotated[str, typer.Argument(help="built-in or remembered model, or a folder", metavar="MODEL")],
) -> int:
    """Compile what a model's network repeats, once, for `--technique compile:backend=ahead`; takes minutes.

    The code is kept in your cache folder and opened from nowhere else. It is for this processor, float32 and these
    versions: after an update it is made again.
    """
    from ..pipelines.loading import open_model
    from .converting import own_store
    from .registry import locate

    model, store = open_model(locate(place).place), own_store()
    least = 4 * model.limits.multiple
    console.say(f"compiling for {model.name}; each kind of block takes up to a minute or two")
    began = time.perf_counter()
    made = store.make(
        model.denoise.net,
        lambda: called(model, (2 * least, 3 * least), 2),
        lambda: called(model, (least, least), 1),
    )
    seconds = time.perf_counter() - began
    rows: list[tuple[str, ...]] = [
        (one.block, f"{one.file.stat().st_size:,} bytes" if one.file else f"left to torch: {one.why}")
        for one in made
    ]
    kinds = [
        {"block": one.block, "file": str(one.file) if one.file else None, "why": one.why} for one in made
    ]
    done = any(one.file for one in made)
    console.data({"kinds": kinds, "folder": str(store.folder), "seconds": round(seconds, 1)}, table(rows))
    return 0 if done else 1


def called(model: Model, size: tuple[int, int], batch: int) -> torch.Tensor:
    """One call of the network, as a sampler would make it."""
    import torch

    x = torch.randn(batch, *model.latent_shape(*size), generator=torch.Generator().manual_seed(0))
    cond = model.encode(["a red cube"], key="pos")
    return model.denoise(x, 0.5, cond)[0].x0
