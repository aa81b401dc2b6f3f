"""`sfumato jobs delete` and `sfumato jobs gc`: results that nobody wants any more."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Console


def jobs_delete(
    console: Console,
    ids: Annotated[list[int], typer.Argument(help="numbers of finished jobs", metavar="ID...")],
) -> None:
    """Delete finished jobs and their results, for good. What other jobs have too stays."""
    from .jobs.deletion import delete
    from .jobs.home import data_folder
    from .jobs.store import Store

    store = Store(data_folder())
    files = {id: delete(store, id) for id in dict.fromkeys(ids)}
    text = "\n".join(f"{id}: deleted, {count} files" for id, count in files.items())
    console.data([{"id": id, "files": count} for id, count in files.items()], text)


def jobs_gc(
    console: Console,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", help="delete results of the oldest jobs until so much is left, as 20GB", metavar="SIZE"
        ),
    ] = None,
) -> None:
    """Delete what nothing needs any more; with --to, the oldest results too. The history stays."""
    from .jobs.artifacts import gc, usage
    from .jobs.home import data_folder, policy, size_of, told_size
    from .jobs.ledger import recover
    from .jobs.store import Store

    store = Store(data_folder())
    recover(store, policy().strikes)
    freed = gc(store, to=None if to is None else size_of(to, "to"))
    left, cap = usage(store), policy().cap
    data = {
        "files": freed.files,
        "bytes": freed.bytes,
        "dropped": list(freed.dropped),
        "left": left,
        "cap": cap,
    }
    text = f"{told_size(freed.bytes)} freed, {told_size(left)} of results left, the cap is {told_size(cap)}"
    console.data(data, text)
