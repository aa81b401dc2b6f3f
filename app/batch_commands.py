"""`sfumato batch ...`: many requests from a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from .console import Console
from .faults import refuse
from .tasks import Config

BATCH_ABOUT = "Many requests from a file: CSV, JSON lines or YAML."
File = Annotated[str, typer.Argument(help="rows of requests: .csv, .jsonl or .yaml", metavar="FILE")]


def batch_run(
    console: Console,
    file: File,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="folder of the results; out/ and the file's name if not given",
            metavar="FOLDER",
        ),
    ] = None,
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check and print the plan, write nothing")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="make what can be made, though a row is bad or fails")
    ] = False,
    per_batch: Annotated[
        int,
        typer.Option(
            "--per-batch",
            help="most pictures sampled at once; 1 gives the very bits of single calls, 0 fits the size",
            min=0,
            max=1000,
        ),
    ] = 0,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="where it is made: here, or on a Ray cluster")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="of the Ray cluster, as HOST:6379; one is started here if not given",
            metavar="ADDRESS",
        ),
    ] = None,
) -> int:
    """Make all rows of a file that are not made yet.

    All are checked before anything runs, and ordered so that models, adapters and prompts are loaded and encoded once.
    Exit codes: 0 all are made, 1 some are not, 2 a row is bad and nothing was started, 130 interrupted.
    """
    from .batch.running import Wish, run_batch

    wish = Wish(file, output, config, dry_run, keep_going, per_batch)
    if engine == "local":
        if address is not None:
            raise refuse("address", address, "is for a cluster; add --engine ray")
        from .batch.local_engine import LocalEngine

        here = LocalEngine()
        try:
            return run_batch(wish, here, console)
        finally:
            here.close()
    from .batch.ray_engine import on_ray

    with on_ray(address, console) as there:
        return run_batch(wish, there, console)


BATCH: dict[str, Callable[..., Any]] = {"batch run": batch_run}
