"""`sfumato train linfusion`: a model's self-attention made linear, and taught by the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Console
from .faults import refuse


def train_linfusion(
    console: Console,
    name: Annotated[str, typer.Argument(help="built-in or remembered model, or a folder")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="folder of the layers, for linfusion:weights=FOLDER")
    ],
    minutes: Annotated[float, typer.Option("--minutes", help="of learning", min=0.01)] = 5.0,
    batch: Annotated[int, typer.Option("--batch", help="pictures of a trajectory", min=1)] = 8,
    rate: Annotated[float, typer.Option("--rate", help="learning rate", min=1e-7, max=1)] = 5e-4,
) -> None:
    """Distil linear attention from a UNet of Stable Diffusion's kind or PixArt; without training pictures."""
    from ..assets.recipes.linfusion import Distilled
    from ..assets.recipes.measure import prompts
    from ..pipelines.converts._linear import save
    from ..pipelines.loading import find_model, open_model
    from .registry import locate

    if output.exists():
        raise refuse("output", str(output), "is there already; name another folder or remove it")
    if not output.parent.is_dir():
        raise refuse("output", str(output), "is in a folder that does not exist; make it first")
    model = open_model(find_model(locate(name).place))
    student, errors = Distilled(minutes, batch, rate)(model, prompts(400, split="train"))
    save(student, output)
    shown = {
        "folder": str(output),
        "trajectories": len(errors),
        "first_error": errors[0],
        "last_error": errors[-1],
    }
    console.data(
        shown, f"{output}: error {errors[0]:.4f} at first, {errors[-1]:.4f} after {len(errors)} trajectories"
    )
