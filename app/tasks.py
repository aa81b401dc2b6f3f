"""The tasks: what is asked for (a request class), what does it (a job), and how a terminal runs it (a command).

A job takes the request and a `Work` (see work.py). A command takes the given values of its request and the console; its
other keyword parameters are options that do not change the result. Heavy imports stay inside the functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer

from .console import Console
from .faults import refuse
from .registry import located
from .requests import GenerateRequest, Request, WorldRequest
from .settings import config_file, make_request, merged, unknown_variables
from .work import Job, Outcome, Work

Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="file (.png .jpg .webp), or folder if it ends in /; a new dated folder in out/ if not given",
        metavar="PATH",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the full request and the plan, write nothing")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", help="YAML or TOML file of settings, below flags and environment", metavar="FILE"
    ),
]
Resume = Annotated[
    str | None,
    typer.Option("--resume", help="go on with an interrupted run from its .resume file", metavar="FILE"),
]
PreviewEvery = Annotated[
    int,
    typer.Option(
        "--preview-every", help="write a small preview beside the output every N steps; 0 is off", min=0
    ),
]
Sidecar = Annotated[
    bool, typer.Option("--sidecar", help="write the record and the timings beside each image as .json")
]
Several = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        help="processes that make each picture together, one per GPU: cfg=2 spreads the guidance, ulysses=4 the tokens",
        metavar="KEY=N[,...]",
    ),
]


class Task(NamedTuple):
    request: type[Request]
    job: Job
    run: Callable[..., Any] | None = None
    """A command of its own; without one, results go into a folder."""

    @property
    def command(self) -> Callable[..., Any]:
        return self.run or plain_command(self)


def plain_command(task: Task) -> Callable[..., Any]:
    """The command of a task that needs no options beside its request's."""

    def run(values: dict[str, Any], console: Console, *, output: Output = None, config: Config = None) -> int:
        from .local import run_here

        request = make_request(task.request, gathered(task.request, values, config, console))
        return run_here(request, task.job, console, _output(output))

    run.__doc__ = task.request.__doc__
    return run


def together(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The command of a task whose pictures several processes can make together, with `--parallel` besides."""

    def command(values: dict[str, Any], console: Console, *, parallel: Several = None, **given: Any) -> Any:
        if parallel is None:
            return function(values, console, **given)
        from .local import Choices, generate_images
        from .parallel import make_together
        from .sharing import Parallel

        shape = Parallel.read(parallel)
        if shape.shape.size == 1:
            return function(values, console, **given)
        choices = Choices(_output(given["output"]), given["preview_every"], given["sidecar"])
        resume, request = given["resume"], None
        if resume is None:
            request = make_request(
                GenerateRequest, gathered(GenerateRequest, values, given["config"], console)
            )
            if given["dry_run"]:
                return generate_images(request, console, choices, dry_run=True, parallel=shape)
        return make_together(request, resume, console, choices, shape)

    own = inspect.signature(function, eval_str=True)
    more = inspect.Parameter("parallel", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Several)
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = own.replace(parameters=[*own.parameters.values(), more])  # type: ignore[attr-defined]
    return command


@together
def generate(
    values: dict[str, Any],
    console: Console,
    *,
    output: Output = None,
    config: Config = None,
    dry_run: DryRun = False,
    resume: Resume = None,
    preview_every: PreviewEvery = 0,
    sidecar: Sidecar = False,
) -> int | None:
    """Make images from a prompt.

    Techniques are named by their catalogue id: `sfumato techniques` lists them.
    """
    from .local import Choices, generate_images, resume_images

    if resume is not None:
        return resume_images(resume, console, Choices(None, preview_every, sidecar))
    request = make_request(GenerateRequest, gathered(GenerateRequest, values, config, console))
    return generate_images(
        request, console, Choices(_output(output), preview_every, sidecar), dry_run=dry_run
    )


def world(
    values: dict[str, Any],
    console: Console,
    *,
    output: Output = None,
    config: Config = None,
    dry_run: DryRun = False,
) -> None:
    """Render a scene of the built-in world, with all that is true of it.

    Writes one file per map and scene.json with boxes, camera and the coding of the maps.
    """
    from .worlds import make_world

    request = make_request(WorldRequest, gathered(WorldRequest, values, config, console))
    result = make_world(request, console, output=_output(output), dry_run=dry_run)
    console.data(result, None if dry_run else "")


def generate_job(request: GenerateRequest, work: Work) -> Outcome:
    from .generation import generate

    return generate(request, work)


def world_job(request: WorldRequest, work: Work) -> Outcome:
    from .worlds import world

    return world(request, work)


def gathered(
    request: type[Request], values: dict[str, Any], config: str | None, console: Console
) -> dict[str, Any]:
    """The given values over those of environment and config file."""
    for name in unknown_variables():
        console.say(f"{name}: no setting is called so; it is passed over")
    file = config_file(config)
    if file is not None:
        console.detail(f"settings from {file}")
    found = located(merged(request, values, file), file)
    if request.spoken and request.positional not in found:
        raise refuse(
            request.positional,
            None,
            f'is needed; write sfumato {request.task} "a red cube", or -p "" for an empty one',
        )
    return found


def _output(given: str | None) -> str | None:
    import os

    return given if given is not None else os.environ.get("SFUMATO_OUTPUT")


TASKS = (Task(GenerateRequest, generate_job, generate), Task(WorldRequest, world_job, world))
