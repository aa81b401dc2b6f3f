"""The `Work` of a job: results into the store, progress and previews where others read them, checkpoints in time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipelines.stopping import poll
from ..metadata import model_hash, versions
from ..output import write_text, write_whole
from ..shelf import Shelf
from ..work import Artifact, Outcome, Write
from . import memory
from .artifacts import CHECKPOINT, DEFECT, PREVIEW, hash_of
from .home import Policy
from .ledger import Claim

if TYPE_CHECKING:
    from PIL import Image

MANIFEST = "manifest.json"


@dataclass
class JobWork:
    """Everything here is cheap but `keep` and, now and then, `checkpoint` and `preview`."""

    claim: Claim
    shelf: Shelf
    device: str
    policy: Policy
    stopping: Callable[[], bool]
    """Whether the runner itself is to stop."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by phase."""
    names: set[str] = field(default_factory=set)
    _phase: str = ""
    _since: float = field(default_factory=time.perf_counter)
    _last: tuple[Callable[[Path], object], int, int] | None = None
    """The step from which the run could go on, not yet written."""
    _written: float = field(default_factory=time.monotonic)
    _told: float = 0.0
    _previews: int = 0
    _preview_due: float = 0.0

    def begin(self) -> None:
        memory.begin(self.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names |= {kept.name for kept in self.claim.store.artifacts(self.claim.id)}
        self._previews = self.claim.store.get(self.claim.id).previews

    @property
    def folder(self) -> Path:
        return self.claim.store.job_folder(self.claim.id)

    def cancelled(self) -> bool:
        return self.stopping() or bool(self.claim.wanted())

    def phase(self, name: str) -> None:
        poll()
        self._clock(name)
        self.claim.phase(name)

    def _clock(self, name: str) -> None:
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = name, now

    def progress(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if step == steps or now - self._told >= self.policy.progress_seconds:
            self._told = now
            self.claim.progress(step, steps, self._previews)

    def preview(self, step: int, render: Callable[[], Image.Image]) -> None:
        """A file that is replaced as a whole; `previews` in the row counts up, so that readers see when."""
        began = time.monotonic()
        if began < self._preview_due:
            return
        image, part = render(), self.folder / f".{PREVIEW}.part"
        image.save(part, "PNG", compress_level=1)
        os.replace(part, self.folder / PREVIEW)
        self._previews += 1
        job = self.claim.store.get(self.claim.id)
        self.claim.progress(job.step, job.steps, self._previews)
        cost = time.monotonic() - began
        self._preview_due = began + max(self.policy.preview_seconds, cost / self.policy.preview_share)

    def about(self) -> Mapping[str, Any]:
        return {}

    def checkpoint(self, save: Callable[[Path], object], step: int, steps: int) -> None:
        self._last = (save, step, steps)
        if step == steps or time.monotonic() - self._written >= self.policy.checkpoint_seconds:
            self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """The last step, if it is not on the disk already."""
        if self._last is None:
            return
        save, step, steps = self._last
        part = self.folder / f".{CHECKPOINT}.part"
        save(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, self.folder / CHECKPOINT)
        self._last, self._written = None, time.monotonic()
        self.claim.advanced(step, steps)

    def saved(self) -> Path | None:
        file = self.folder / CHECKPOINT
        return file if file.is_file() else None

    def kept(self) -> Collection[str]:
        return self.names

    def keep(self, artifact: Artifact, write: Write) -> None:
        poll()
        part = self._part(artifact.name, write)
        self.claim.keep(artifact, part, hash_of(part))
        self.names.add(artifact.name)

    def _part(self, name: str, write: Write) -> Path:
        part = self.folder / f"new-{name}"
        write_whole(part, write)
        return part

    def note(self, text: str) -> None:
        self.claim.note(text)

    def finish(self, outcome: Outcome) -> None:
        """The manifest, and the end of the job."""
        self._clock("")
        text = json.dumps(self.manifest(outcome), indent=1, ensure_ascii=False, default=str) + "\n"
        part = self._part(MANIFEST, lambda file: file.write(text.encode()))
        self.claim.complete(Artifact(MANIFEST, "application/json", {}), part, hash_of(part))
        shutil.rmtree(self.folder, ignore_errors=True)  # should it be killed here, `gc` comes by

    def manifest(self, outcome: Outcome) -> dict[str, Any]:
        """What it takes to make the results again, and what making them took."""
        store, id = self.claim.store, self.claim.id
        job = store.get(id)
        return {
            "schema": 1,
            "job": id,
            "task": job.task,
            "asked": store.request(id),
            "request": outcome.request.model_dump(mode="json"),
            "versions": versions(),
            "model": {**outcome.model, "hash": model_hash(outcome.model)} if outcome.model else {},
            "notes": list(outcome.notes),
            "device": self.device,
            "attempts": job.attempts,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "peak_bytes": memory.peak(self.device),
            "artifacts": [
                {
                    "name": kept.name,
                    "sha256": kept.hash,
                    "bytes": kept.bytes,
                    "media": kept.media,
                    **kept.about,
                }
                for kept in store.artifacts(id)
            ],
        }

    def report_defect(self, trace: str) -> Path:
        file = self.folder / DEFECT
        write_text(file, trace)
        return file
