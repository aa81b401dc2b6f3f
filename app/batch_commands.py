"""`sfumato batch ...`: many requests from a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .batch.wish import Wish
from .console import Console
from .faults import refuse
from .options import request_command
from .settings import make_request
from .tasks import Config

BATCH_ABOUT = "Many requests from a file: CSV, JSON lines or YAML."


def batch_run(values: dict[str, Any], console: Console, *, config: Config = None) -> int:
    """Make all rows of a file that are not made yet.

    All are checked before anything runs, and ordered so that models, adapters and prompts are loaded and encoded once.
    Exit codes: 0 all are made, 1 some are not, 2 a row is bad and nothing was started, 130 interrupted.
    """
    wish = make_request(Wish, values)
    if not wish.file:
        raise refuse("file", None, "is needed; write sfumato batch run rows.csv")
    if wish.engine == "local" and (wish.address or wish.cpus):
        name = "address" if wish.address else "cpus"
        raise refuse(name, dict(wish)[name], "is for a cluster; add --engine ray")
    from .batch.running import run_batch
    from .batch.sheet import read_sheet

    entries = read_sheet(wish.file)
    if wish.engine == "local":
        from .batch.local_engine import LocalEngine

        here = LocalEngine()
        try:
            return run_batch(wish, entries, here, console, config)
        finally:
            here.close()
    from .batch.ray_engine import on_ray

    with on_ray(wish.address, wish.cpus, console) as (there, own):
        return run_batch(wish, entries, there, own, config)


BATCH: dict[str, Callable[..., Any]] = {"batch run": request_command(Wish)(batch_run)}
