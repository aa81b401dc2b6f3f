"""What `sfumato batch run` can be told; its command line is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from ..requests import Request, field


class Wish(Request):
    """Many requests from a file."""

    task: ClassVar[str] = "batch"
    positional: ClassVar[str] = "file"

    file: str = field("", "rows of requests: .csv, .jsonl or .yaml")
    output: str | None = field(
        None,
        "folder of the results; out/ and the file's name if not given. What is there already is not made again",
        flags=("-o",),
        min_length=1,
    )
    dry_run: bool = field(False, "check all rows and print the plan, write nothing (off if not given)")
    keep_going: bool = field(False, "make what can be made, though a row is bad or fails (off if not given)")
    per_batch: int = field(
        0,
        "most pictures sampled at once; 1 gives the very bits of single calls, 0 is what suits their size",
        ge=0,
        le=1000,
    )
    engine: Literal["local", "ray"] = field("local", "where it is made: here, or on a Ray cluster")
    address: str | None = field(
        None,
        "of the Ray cluster, as HOST:6379; one is started on this machine if not given",
        group="ray",
        min_length=1,
    )
    cpus: int = field(
        0,
        "processors of a worker, where there are no GPUs; 0 is all of its node's",
        group="ray",
        ge=0,
        le=4096,
    )

    @property
    def folder(self) -> Path:
        """The same at the next run, which goes on with what is in it."""
        return Path(self.output).expanduser() if self.output else Path("out") / Path(self.file).stem
