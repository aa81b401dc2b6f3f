"""`sfumato train linfusion`: a model's self-attention made linear, and taught by the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Console
from .faults import refuse

if TYPE_CHECKING:
    from ..assets.recipes.linfusion import Distilled
    from ..pipelines.protocols import Model


def train_linfusion(
    console: Console,
    name: Annotated[str, typer.Argument(help="built-in or remembered model, or a folder")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="folder of the layers, for linfusion:weights=FOLDER")
    ],
    minutes: Annotated[float, typer.Option("--minutes", help="of learning", min=0.01)] = 5.0,
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="pictures of a trajectory; 8 or as many as fit, if not given", min=1),
    ] = None,
    rate: Annotated[float, typer.Option("--rate", help="learning rate", min=1e-7, max=1)] = 5e-4,
) -> None:
    """Distil linear attention from a UNet of Stable Diffusion's kind or PixArt; without training pictures."""
    from ..assets.recipes.linfusion import Distilled
    from ..assets.recipes.measure import prompts
    from ..pipelines.converts._linear import save
    from ..pipelines.loading import find_model, open_model
    from .planning import GB
    from .registry import locate

    if output.exists():
        raise refuse("output", str(output), "is there already; name another folder or remove it")
    if not output.parent.is_dir():
        raise refuse("output", str(output), "is in a folder that does not exist; make it first")
    model = open_model(find_model(locate(name).place))
    recipe, peak = _fitted(model, Distilled(minutes, batch or 8, rate), batch)
    console.say(f"{recipe.batch} pictures at once in {peak / GB:.2f} GB, for {minutes:g} minutes")
    student, errors = recipe(model, prompts(400, split="train"))
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


def _fitted(model: Model, recipe: Distilled, asked: int | None) -> tuple[Distilled, int]:
    """With as many pictures at once as fit into memory, all that were asked for or none; and the peak in bytes."""
    from .estimates import at_once

    batch, peak = at_once(model, recipe.batch, lambda some: replace(recipe, batch=some).held(model))
    if asked is not None and batch < asked:
        raise refuse("batch", str(asked), f"is more than memory holds; give --batch {batch}, or leave it out")
    return replace(recipe, batch=batch), peak
