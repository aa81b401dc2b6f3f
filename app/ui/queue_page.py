"""The queue: what runs and what waits, and what can be done about it."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from ...pipelines.errors import SfumatoError
from ..jobs import control
from ..jobs.deletion import delete
from ..jobs.store import CANCELLED, FAILED, RUNNING, Job, Store
from ..server.desk import Desk
from .cards import delete_button, empty, results, when
from .panels import Deed, button, fault
from .stage import Stage

SHOWN = 100
ENDED = 10
ROW = Markup(
    '<li class="sf-row" data-state="{}" data-key="{}"><span class="sf-id">{}</span><span class="sf-what"><b>{}</b>'
    '<span class="sf-small">{}</span></span><span class="sf-acts">{}</span></li>'
)
LIST = Markup('<h3 class="sf-heading">{}</h3><ul class="sf-list">{}</ul>')


def first(store: Store, id: int) -> Job:
    head = control.first(store)
    return store.get(id) if head == id else control.move(store, id, before=head)


def up(store: Store, id: int) -> Job:
    """One place earlier among those that wait."""
    waiting = [job.id for job in store.queue() if job.state != RUNNING]
    place = waiting.index(id) if id in waiting else 0
    return control.move(store, id, before=waiting[place - 1]) if place else store.get(id)


DEEDS: dict[str, Callable[[Store, int], object]] = {
    "cancel": control.cancel,
    "pause": control.pause,
    "resume": control.resume,
    "retry": control.retry,
    "first": first,
    "up": up,
    "last": lambda store, id: control.move(store, id),
    "delete": delete,
}


def steer(desk: Desk, deed: Deed) -> str:
    """Do it. The sentence that says why not, or nothing."""
    if deed.deed not in DEEDS or not deed.id.isdecimal():
        return ""
    try:
        DEEDS[deed.deed](desk.store, int(deed.id[:18]))
    except SfumatoError as error:
        return str(error)
    return ""


def queue(desk: Desk, stage: Stage, said: str = "") -> Markup:
    store = desk.store
    waiting = store.queue(limit=SHOWN)
    ended = store.history(states=(FAILED, CANCELLED), limit=ENDED)
    parts = [fault(said)] if said else []
    if waiting:
        rows = Markup("").join(_row(job, stage.words(job), _acts(job)) for job in waiting)
        parts.append(LIST.format(f"Runs and waits ({len(waiting)})", rows))
    else:
        parts.append(empty("The queue is empty", "What you ask for in any tab waits here for its turn."))
    if ended:
        rows = Markup("").join(
            _row(job, stage.words(job), _acts_at_end(job, len(results(store, job.id)))) for job in ended
        )
        parts.append(LIST.format("Failed and cancelled", rows))
    return Markup('<div class="sf-queue">{}</div>').format(Markup("").join(parts))


def _row(job: Job, words: str, acts: list[Markup]) -> Markup:
    small = f"{job.task} · {words} · {when(job.created)}"
    return ROW.format(job.state, job.id, job.id, job.summary or job.task, small, Markup("").join(acts))


def _acts_at_end(job: Job, results: int) -> list[Markup]:
    return [button("retry", job.id, "Try again"), delete_button(job, results)]


def _acts(job: Job) -> list[Markup]:
    paused = job.held or job.wanted == "pause"
    found = [button("resume", job.id, "Go on") if paused else button("pause", job.id, "Pause")]
    if job.state != RUNNING:
        found += [
            button("first", job.id, "First", title="To the head of the queue"),
            button("up", job.id, "Up", title="One place earlier"),
            button("last", job.id, "Last", title="To the end"),
        ]
    return [*found, button("cancel", job.id, "Cancel")]
