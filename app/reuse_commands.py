"""`sfumato train reuse` and `sfumato train harmonica`: measure, and learn, what earlier steps can stand in for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Console
from .faults import refuse

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
        Path, typer.Option("--output", "-o", help="file of the table, for block-cache:table=FILE")
    ],
    steps: Steps = None,
    price: Annotated[
        float, typer.Option("--price", help="of computing: the higher, the more is reused", min=0)
    ] = 0.12,
    rounds: Annotated[int, typer.Option("--rounds", help="trajectories to learn from", min=1)] = 40,
    batch: Annotated[int, typer.Option("--batch", help="pictures in each", min=1)] = 2,
) -> None:
    """Learn which block of a transformer is computed at which step, against the final picture's error."""
    from ..assets.recipes.harmonica import Harmonica
    from ..assets.recipes.measure import prompts as captions
    from ..pipelines.loading import find_model, open_model
    from .registry import locate

    model = open_model(find_model(locate(name).place))
    steps = model.defaults.steps if steps is None else steps
    recipe = Harmonica(rounds, batch, price, scale=max(model.defaults.guidance, 1.0))
    console.say(f"{rounds} trajectories of {batch} pictures at {steps} steps")
    table = recipe(model, captions(rounds * batch, split="train"), steps)
    table.write(output)
    shown = {
        "file": str(output),
        "steps": steps,
        "blocks": len(table.blocks),
        "computed": round(table.share, 4),
    }
    console.data(shown, f"{output}: {table.share:.0%} of the blocks are computed")
