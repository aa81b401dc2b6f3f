"""What the command line says: data on stdout, talk on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

Step = Callable[[int, int], None]
"""Told (steps done, steps in all)."""


@dataclass(frozen=True)
class Console:
    """How to talk: `format` shapes stdout only; `quiet` leaves errors only; `verbose` adds tracebacks."""

    format: str = "text"
    quiet: bool = False
    verbose: bool = False
    out: TextIO | None = None
    """Where data goes, if something else writes to stdout meanwhile."""

    def data(self, value: Any, text: str | None = None) -> None:
        """`value` as JSON, or `text`, on stdout."""
        if self.format == "json" or text is None:
            print(json.dumps(value, indent=2, ensure_ascii=False, default=str), file=self.out, flush=True)
        elif text:
            print(text, file=self.out, flush=True)

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            print(text, file=sys.stderr, flush=True)

    def listen(self) -> None:
        """Say what the package logs: which kernel was taken, what could not be used. Warnings alone if `quiet`."""
        log = logging.getLogger("sfumato")
        log.handlers = [handler for handler in log.handlers if not isinstance(handler, _Heard)] + [_Heard()]
        log.setLevel(logging.WARNING if self.quiet else logging.INFO)

    @contextmanager
    def progress(self, label: str) -> Iterator[Step]:
        """A bar with step and time left on a terminal; nothing elsewhere."""
        if self.quiet or not sys.stderr.isatty():
            yield _silent
            return
        from rich.console import Console as Rich
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Rich(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None)

            def step(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            yield step


class _Heard(logging.Handler):
    """A line on stderr, as it is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def _silent(done: int, total: int) -> None:
    return None


def complain(text: str) -> None:
    """An error: always on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(rows: list[tuple[str, ...]], *, gap: int = 2) -> str:
    """Rows as aligned columns; the last column is left as it is."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    pad = " " * gap
    return "\n".join(
        pad.join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )
