"""Ctrl+C that loses nothing: the first stops the run after the evaluation in hand, the second at once."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import SfumatoError
from ..pipelines.weights import read_header
from .faults import refuse

if TYPE_CHECKING:
    from ..pipelines.checkpoint import Checkpoint
    from .generation import Run
    from .work import Work


@contextmanager
def asked_to_stop(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl+C (or SIGTERM) came. Signals reach the main thread only."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping after this evaluation; once more stops at once and saves nothing")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, on_signal) for number in signals]
    try:
        yield stop.is_set
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def resume_path(image: Path) -> Path:
    return image.with_suffix(".resume")


def read_checkpoint(name: str) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint in a file, and the run it belongs to."""
    from ..pipelines.checkpoint import Checkpoint

    path = Path(name).expanduser()
    if not path.is_file():
        raise refuse("resume", name, "is not a file")
    try:
        read_header(path)
        checkpoint = Checkpoint.load(path)
        job = json.loads(checkpoint.fingerprint)
    except (SfumatoError, ValueError, KeyError, RuntimeError) as error:
        raise refuse("resume", name, f"is not a checkpoint of sfumato ({str(error)[:120]})") from error
    if not isinstance(job, dict) or not {"request", "first", "model"} <= set(job):
        raise refuse("resume", name, "is a checkpoint without its request; it can't be taken up from here")
    return checkpoint, job


def earlier_checkpoint(run: Run, work: Work) -> Checkpoint | None:
    """Where an interrupted run stopped; one that has become strange is left, with a note."""
    file = work.saved()
    if file is None:
        return None
    checkpoint, job = read_checkpoint(str(file))
    why = strange(run, job)
    if why is None:
        return checkpoint
    work.note(f"the checkpoint {why}; its images start anew")
    return None


def strange(run: Run, job: Mapping[str, Any]) -> str | None:
    """Why the checkpoint of `job` can't be gone on with: what the request names is not what it was."""
    from .metadata import model_hash

    if model_hash(run.model.info()) != job["model"]:
        return f"belongs to other weights than those of {run.request.model}"
    if job.get("adapters", [{}, {}]) != run.adapters.marks():
        return "belongs to other LoRAs or embeddings than those there are now"
    if run.adapters.whenever:
        return "belongs to a run whose LoRAs joined when they were ready (swiftdiffusion:at=null)"
    if job.get("pictures", {}) != run.pictures:
        return "belongs to other pictures than those there are now"
    if job["request"] != run.request.model_dump(mode="json"):
        return f"belongs to other settings or another device than {run.request.device}"
    return None
