"""`sfumato train reuse` and `sfumato train harmonica`: measure, and learn, what earlier steps can stand in for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Console
from .faults import refuse

if TYPE_CHECKING:
    from ..assets.recipes.harmonica import Harmonica
    from ..pipelines.patches._table import ReuseTable
    from ..pipelines.protocols import Model

Name = Annotated[str, typer.Argument(help="built-in or remembered model, or a folder")]
Steps = Annotated[
    int | None, typer.Option("--steps", help="steps of the runs; the model's own if not given", min=2)
]


def train_reuse(
    console: Console,
    name: Name,
    steps: Steps = None,
    prompts: Annotated[
        int, typer.Option("--prompts", help="held-out captions of Still Life to measure on", min=1)
    ] = 12,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--way", help="measure this alone, as 'deepcache:interval=3'; repeat; ' + ' joins techniques"
        ),
    ] = None,
) -> None:
    """Measure what each way of reusing steps costs and saves on a model, and write it into its folder for `--reuse`."""
    from ..assets.recipes.measure import prompts as captions
    from ..assets.recipes.reuse import compare, curve
    from ..pipelines.loading import find_model, open_model
    from .assembly import guiding_scale
    from .registry import locate
    from .reuse import candidates, way

    folder = find_model(locate(name).place)
    if not folder.is_dir():
        raise refuse("name", name, "is a file; a curve is written beside a model_index.json")
    model = open_model(folder)
    steps = model.defaults.steps if steps is None else steps
    scale = guiding_scale(model)
    ways = {text: way(text, scale) for text in only or candidates(model, scale)}
    console.say(f"{steps} steps; ways: {len(ways)}, prompts: {prompts}")
    found = curve(compare(model, ways, captions(prompts), steps=steps), steps)
    path = found.write(folder)
    points = [{"technique": p.technique, "loss": p.loss, "time": p.time} for p in found.points]
    console.data({"file": str(path), "steps": steps, "points": points}, str(path))


def train_harmonica(
    console: Console,
    name: Name,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="file of the table, for block-cache:table=FILE or taylorseer:table=FILE"
        ),
    ],
    steps: Steps = None,
    computed: Annotated[
        float, typer.Option("--computed", help="share of the blocks' evaluations that are computed", max=1)
    ] = 0.5,
    pictures: Annotated[
        int | None,
        typer.Option("--pictures", help="to learn from; 12, or 48 with an order, if not given", min=1),
    ] = None,
    order: Annotated[
        int,
        typer.Option(
            "--order", help="of the forecast: 0 for block-cache, else that of taylorseer", min=0, max=2
        ),
    ] = 0,
) -> None:
    """Learn which block of a transformer is computed at which step, by what becomes of the final picture."""
    from ..assets.recipes.harmonica import Harmonica
    from ..assets.recipes.measure import prompts as captions
    from ..pipelines.loading import find_model, open_model
    from .assembly import guiding_scale
    from .planning import GB
    from .registry import locate

    if output.is_dir():
        raise refuse("output", str(output), "is a folder; name a file for the table")
    if not computed > 0:
        raise refuse("computed", str(computed), "leaves nothing to compute; give a share above 0")
    model = open_model(find_model(locate(name).place))
    steps = model.defaults.steps if steps is None else steps
    recipe = Harmonica(computed, scale=max(guiding_scale(model), 1.0)).of_order(order)
    recipe, peak = _fitted(model, recipe if pictures is None else replace(recipe, pictures=pictures), steps)
    at_once = f"{recipe.batch} at once in {peak / GB:.2f} GB"
    console.say(f"{recipe.pictures} pictures at {steps} steps, {at_once}")
    console.say("the best fixed interval first, then what is better")

    def told(trials: int, decibels: float, best: ReuseTable) -> None:
        best.write(output)  # so that stopping early loses nothing
        console.say(f"trial {trials}: the final latents' error is {decibels:.2f} dB")

    table = recipe(model, captions(recipe.pictures, split="train"), steps, told=told)
    table.write(output)
    shown = {
        "file": str(output),
        "steps": steps,
        "blocks": len(table.blocks),
        "computed": round(table.share, 4),
    }
    use = f"taylorseer:order={order},table={output}" if order else f"block-cache:table={output}"
    console.data(shown, f"{output}: {table.share:.0%} of the blocks are computed; use it by -t {use}")


def _fitted(model: Model, recipe: Harmonica, steps: int) -> tuple[Harmonica, int]:
    """With as many pictures at once as fit into memory, and the peak in bytes."""
    from ..pipelines.patches.taylorseer import TaylorSeer
    from .estimates import at_once, called

    conds = [model.encode([""], key=key) for key in ("pos", "neg")[: 1 if recipe.scale == 1 else 2]]
    caches = [TaylorSeer(warmup=recipe.order + 1, order=recipe.order)]
    size = (model.defaults.width, model.defaults.height)

    def needed(batch: int) -> int:
        return called(model, conds, size, batch, [*caches], steps).peak

    batch, peak = at_once(model, min(recipe.pictures, recipe.batch), needed)
    return replace(recipe, batch=batch), peak
