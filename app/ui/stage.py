"""What is seen of a task's jobs beside its form: how far, what it looks like so far, what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from markupsafe import Markup

from ...pipelines.errors import SfumatoError
from ..jobs.artifacts import PREVIEW
from ..jobs.store import CANCELLED, COMPLETED, DONE, FAILED, RUNNING, Job
from ..server.desk import Desk
from .cards import cards, empty, results
from .panels import button

PHASES = {
    "load": "Opening the model",
    "encode": "Reading the prompt",
    "sample": "Sampling",
    "decode": "Decoding",
    "write": "Writing",
}
FILM = 12
"""Earlier jobs whose results are shown below."""
REMEMBERED = 500


class Mark(NamedTuple):
    time: float
    step: int


class Stage:
    """Looks of jobs for all who watch. Paces are kept between looks, so that the time left can be told."""

    def __init__(self, desk: Desk, receivers: tuple[str, ...]) -> None:
        self.desk, self.receivers = desk, receivers
        self._begun: dict[int, Mark] = {}

    def current(self, task: str, mine: Iterable[int]) -> Job | None:
        """What to show: of one's own jobs the one that runs, then the next, then the last; else the task's last."""
        own = [job for id in mine if (job := self._job(id)) is not None and job.task == task]
        open_jobs = [job for job in own if job.state not in DONE]
        running = [job for job in open_jobs if job.state == RUNNING]
        if running or open_jobs:
            return (running or open_jobs)[0]
        if own:
            return max(own, key=lambda job: job.id)
        return next(iter(self.desk.store.history(task=task, limit=1)), None)

    def _job(self, id: int) -> Job | None:
        try:
            return self.desk.store.get(id)
        except SfumatoError:  # a browser may remember jobs of another data folder
            return None

    def status(self, job: Job | None) -> Markup:
        """How far it is, for eyes and for screen readers."""
        if job is None:
            return Markup("")
        acts = [button("cancel", job.id, "Cancel")] if job.state not in DONE else []
        if job.state in (FAILED, CANCELLED):
            acts.append(button("retry", job.id, "Try again"))
        bar = Markup("")
        if job.state == RUNNING and job.steps:
            bar = Markup('<progress value="{}" max="{}" aria-label="Progress"></progress>').format(
                job.step, job.steps
            )
        elif job.state not in DONE:
            bar = Markup('<progress aria-label="Waiting"></progress>')
        kind = "sf-fault" if job.state == FAILED else "sf-status"
        return Markup(
            '<div class="{}" data-state="{}" data-job="{}">{}<div class="sf-line"><span>{}</span>{}</div></div>'
        ).format(kind, job.state, job.id, bar, self.words(job), Markup("").join(acts))

    def words(self, job: Job) -> str:
        match job.state:
            case "completed":
                return f"Job {job.id} is done, {_seconds((job.finished or 0) - (job.started or 0))}"
            case "failed":
                return f"Job {job.id} failed: {job.error}"
            case "cancelled":
                return f"Job {job.id} was cancelled"
            case "running":
                phase = PHASES.get(job.phase, job.phase.capitalize() or "Starting")
                steps = f" {job.step} of {job.steps}" if job.steps and job.phase == "sample" else ""
                left = self.left(job)
                return f"{phase}{steps}" + (f" · about {_seconds(left)} left" if left is not None else "")
        if job.held:
            return f"Job {job.id} is paused: see the queue"
        ahead = [other.id for other in self.desk.store.queue(limit=200)]
        place = ahead.index(job.id) if job.id in ahead else 0
        runs = self.desk.runner is None or self.desk.runner()
        waits = f"Job {job.id} waits" + (f", {place} before it" if place else "")
        return waits if runs else f"{waits}; the runner has ended, the server's log says why"

    def left(self, job: Job) -> float | None:
        """Seconds to the last step, at the pace since it was first seen sampling."""
        if not job.steps or not job.step or job.phase not in ("sample", "decode", "write"):
            return None
        now = time.monotonic()
        if len(self._begun) > REMEMBERED:
            self._begun.clear()
        begun = self._begun.get(job.id)
        if begun is None or begun.step > job.step:  # it went back to a checkpoint
            begun = self._begun[job.id] = Mark(now, job.step)
        done = job.step - begun.step
        return None if done < 1 else (now - begun.time) / done * (job.steps - job.step)

    def picture(self, job: Job | None) -> Markup:
        """The results of the job, or what can be seen of them so far."""
        if job is None:
            return empty("Nothing here yet", "Write what you want to see, then press Ctrl+Enter.")
        if job.state not in DONE:
            preview = self.desk.store.job_folder(job.id) / PREVIEW
            if job.previews and preview.exists():
                src = f"/v1/jobs/{job.id}/preview?of={job.previews}"
                image = '<div class="sf-preview"><img src="{}" alt="The picture so far" data-keep="preview"></div>'
                return Markup(image).format(src)
            return Markup('<div class="sf-preview sf-waiting" aria-hidden="true"></div>')
        found = results(self.desk.store, job.id)
        if not found:
            why = "See the line above." if job.state != COMPLETED else "Its results were deleted."
            return empty("No picture", why)
        many = "sf-one" if len(found) == 1 else "sf-many"
        return Markup('<div class="{}">{}</div>').format(
            many, cards(self.desk, [job], self.receivers, whole=True)
        )

    def film(self, task: str, shown: Job | None) -> Markup:
        """Earlier results of this task."""
        jobs = self.desk.store.history(task=task, states=(COMPLETED,), limit=FILM + 1)
        rest = [job for job in jobs if shown is None or job.id != shown.id][:FILM]
        inner = cards(self.desk, rest, self.receivers)
        return Markup('<h3 class="sf-heading">Earlier</h3>{}').format(inner) if inner else Markup("")


def _seconds(count: float) -> str:
    count = max(0.0, count)
    if count < 60:
        return f"{count:.1f} s" if count < 10 else f"{count:.0f} s"
    minutes = round(count / 60)
    return f"{minutes} min" if minutes < 90 else f"{count / 3600:.1f} h"
