"""The commands that are no tasks: what exists, what a file says, what the machine can do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..pipelines.errors import BadInput
from .batch_commands import BATCH
from .console import Console, table
from .faults import unknown
from .job_commands import JOBS
from .linear_commands import train_linfusion
from .model_commands import MODELS
from .output import ensure_folder
from .requests import REQUESTS
from .reuse_commands import train_harmonica, train_reuse
from .serve_commands import TOKENS

if TYPE_CHECKING:
    from .catalogue import Entry

File = Annotated[
    str, typer.Argument(help="an image, a .safetensors or .gguf file, or a model folder", metavar="FILE")
]


def replay(
    console: Console,
    file: Annotated[str, typer.Argument(help="an image that sfumato made", metavar="FILE")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="where to write it; as for generate", metavar="PATH")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="where the weights are now, if they moved", metavar="TEXT"),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="only compare, write nothing")] = False,
) -> int:
    """Make an image again from its own metadata, and say whether it is the same.

    Same versions, weights and machine give the same bytes. Exit code 1 if the pixels differ.
    """
    from .replay import replay_file

    return replay_file(file, console, output=output, check=check, model=model)


def inspect(console: Console, file: File) -> None:
    """Say how an image was made, or what weights hold.

    Images of sfumato, A1111 and kin, ComfyUI, InvokeAI, SwarmUI, Fooocus; .safetensors and .gguf files; model folders.
    """
    from .inspection import inspect_path, told

    found = inspect_path(file)
    console.data(found, told(found))


def techniques(
    console: Console,
    name: Annotated[
        str | None, typer.Argument(help="id of one technique, for all about it", metavar="[NAME]")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="only sampler, schedule, guidance, wrap, patch, convert, distill, family, recipe or system",
        ),
    ] = None,
) -> None:
    """List the techniques, or explain one: its paper, settings, ranges and cost."""
    from .catalogue import catalogue

    entries = catalogue()
    if name is not None:
        known = {called: e.called(called) for e in entries.values() for called in (e.id, *e.aliases)}
        if name not in known:
            raise unknown("technique", name, known, "`sfumato techniques` lists all")
        console.data(known[name].plain(), "\n".join(explained(known[name], name)))
        return
    kinds = {e.kind for e in entries.values()}
    if kind is not None and kind not in kinds:
        raise unknown("kind", kind, kinds, f"known are {', '.join(sorted(kinds))}")
    chosen = [e for e in entries.values() if kind in (None, e.kind)]
    console.data([e.plain() for e in chosen], table([(e.kind, e.id, e.summary) for e in chosen]))


def explained(entry: Entry, name: str) -> list[str]:
    """All about one technique, under one of its names."""
    stands = [f":{setting}={value}" for alias, setting, value in entry.presets if alias == name]
    lines = [] if name == entry.id else [f"{name} is {entry.id}{''.join(stands)}", ""]
    lines += [entry.doc, "", f"Kind: {entry.kind}", f"File: {entry.file}"]
    settings = [
        f"  {s.name}: {s.type}{'' if s.default is ... else f' = {s.default!r}'}" for s in entry.settings
    ]
    return [*lines, "Settings:", *settings] if settings else lines


def doctor(console: Console) -> int:
    """Look at the hardware, the versions, the extras, the models, the folders and the settings in force."""
    from .diagnosis import examine, told

    report = examine()
    console.data(report, told(report))
    return 0 if report["ok"] else 1


def schema(
    console: Console,
    task: Annotated[
        str | None, typer.Argument(help="a task; all tasks if not given", metavar="[TASK]")
    ] = None,
) -> None:
    """Print the JSON schema of a task's request: fields, types, ranges, units, defaults and help."""
    if task is None:
        console.data({name: request.model_json_schema() for name, request in REQUESTS.items()})
        return
    if task not in REQUESTS:
        raise unknown("task", task, REQUESTS, f"known are {', '.join(REQUESTS)}")
    console.data(REQUESTS[task].model_json_schema())


def train_builtin(
    console: Console,
    name: Annotated[
        str,
        typer.Argument(help="vae, judge, still-life, still-life-unet or still-life-llama; vae comes first"),
    ],
    minutes: Annotated[float, typer.Option("--minutes", help="time to train, in minutes", min=0.01)] = 60.0,
    work: Annotated[
        str,
        typer.Option(
            "--work", help="folder of the stages' checkpoints; a second run goes on", metavar="FOLDER"
        ),
    ] = ".train",
    scenes: Annotated[
        int, typer.Option("--scenes", help="scenes to render for training, once per work folder", min=64)
    ] = 16384,
    every_task: Annotated[
        bool | None,
        typer.Option(
            "--every-task/--text-to-image",
            help="train the whole mixture of tasks, or text to image alone; the mixture if there is a GPU",
        ),
    ] = None,
    microdit: Annotated[
        float,
        typer.Option(
            "--microdit", help="still-life: share of tokens that most blocks leave out", min=0.0, max=0.9
        ),
    ] = 0.0,
    repa: Annotated[
        float,
        typer.Option("--repa", help="still-life: weight of the alignment with true geometry", min=0.0),
    ] = 0.0,
) -> None:
    """Train a built-in model from its recipe: from the shipped weights, or from nothing after `vae`."""
    from ..assets.recipes import builtin
    from ..assets.recipes.learning.microdit import MicroDit
    from ..assets.recipes.learning.repa import Repa

    ensure_folder(Path(work))
    console.say(f"training {name} for {minutes:g} minutes in {work}/")
    try:
        folder = builtin.train(
            name,
            minutes=minutes,
            work=Path(work),
            scenes=scenes,
            every_task=every_task,
            repa=Repa(repa) if repa else None,
            microdit=MicroDit(microdit) if microdit else None,
        )
    except ValueError as error:
        if not str(error).startswith("name:"):
            raise
        raise BadInput("name", str(error)) from error
    console.data({"name": name, "minutes": minutes, "folder": str(folder)}, str(folder))


COMMANDS: dict[str, Callable[..., Any]] = {
    "replay": replay,
    "inspect": inspect,
    "techniques": techniques,
    "doctor": doctor,
    "schema": schema,
    "train builtin": train_builtin,
    "train harmonica": train_harmonica,
    "train linfusion": train_linfusion,
    "train reuse": train_reuse,
    **MODELS,
    **JOBS,
    **BATCH,
    **TOKENS,
}
