"""Results as cards: pictures, clips, other files; what can be done with each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from markupsafe import Markup

from ..jobs.store import Job, Kept, Store
from ..server.desk import Desk
from .panels import button

MANIFEST = "manifest.json"
CARD = Markup(
    '<figure class="sf-card" data-key="{}"><div class="sf-media">{}</div><figcaption><span class="sf-title">{}</span>'
    '<span class="sf-small">{}</span></figcaption><div class="sf-acts">{}</div></figure>'
)


def results(store: Store, job: int) -> list[Kept]:
    """What a job has kept, without its manifest."""
    return [kept for kept in store.artifacts(job) if kept.name != MANIFEST]


def cards(desk: Desk, jobs: Iterable[Job], receivers: tuple[str, ...], *, whole: bool = False) -> Markup:
    """A card for each result of these jobs. `receivers` are the tasks that a picture can be sent to; `whole` shows
    pictures at their full size, not small.
    """
    found = list(_cards(desk, jobs, receivers, whole))
    return Markup('<div class="sf-cards">{}</div>').format(Markup("").join(found)) if found else Markup("")


def _cards(desk: Desk, jobs: Iterable[Job], receivers: tuple[str, ...], whole: bool) -> Iterator[Markup]:
    for job in jobs:
        found = results(desk.store, job.id)
        deletes = delete_button(job, len(found))
        for kept in found:
            yield card(job, kept, acts(kept, receivers) + deletes, whole=whole)


def card(job: Job, kept: Kept, buttons: Markup, *, whole: bool = False) -> Markup:
    title = job.summary or kept.name
    seed = kept.about.get("seed")
    small = " · ".join(
        part
        for part in (job.task, f"seed {seed}" if seed is not None else kept.name, when(kept.created))
        if part
    )
    return CARD.format(kept.hash, media(kept, title, whole=whole), title, small, buttons)


def media(kept: Kept, title: str, *, whole: bool = False) -> Markup:
    url = f"/v1/artifacts/{kept.hash}"
    match kept.media.partition("/")[0]:
        case "image":
            link = '<a href="{}" target="_blank" rel="noopener"><img src="{}" alt="{}" loading="lazy"></a>'
            return Markup(link).format(url, url if whole else f"{url}/thumbnail", title)
        case "video":
            film = (
                '<video src="{}" controls loop muted playsinline preload="metadata" aria-label="{}"></video>'
            )
            return Markup(film).format(url, title)
    link = '<a class="sf-file" href="{}" target="_blank" rel="noopener"><b>{}</b><span>{}</span></a>'
    return Markup(link).format(url, kept.name, kept.media)


def acts(kept: Kept, receivers: tuple[str, ...]) -> Markup:
    """Small buttons below a result."""
    found = [button("use", kept.hash, "Settings", title="Use these settings again")]
    if kept.media.startswith("image/"):
        found += [
            button("a", kept.hash, "A", title="Left picture of the comparison"),
            button("b", kept.hash, "B", title="Right picture of the comparison"),
        ]
        for task in receivers:
            found.append(
                button("send", kept.hash, f"→ {task}", to=task, title=f"Start {task} from this picture")
            )
    found.append(button("details", kept.hash, "Details", title="How it was made"))
    save = '<a href="/v1/artifacts/{}" download="{}" title="Save this file">Save</a>'
    return Markup("").join([*found, Markup(save).format(kept.hash, f"{kept.job}-{kept.name}")])


def delete_button(job: Job, count: int) -> Markup:
    """Deletes a finished job with its `count` results, after a question."""
    what = {0: "", 1: " and its result"}.get(count, f" and its {count} results")
    ask = f"Delete job {job.id}{what}? This can't be undone."
    return button("delete", job.id, "Delete", title=f"Delete job {job.id}{what}", ask=ask)


def when(seconds: float) -> str:
    """The time of today's, the day of others."""
    then = time.localtime(seconds)
    today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M" if today else "%Y-%m-%d", then)


def empty(title: str, text: str) -> Markup:
    return Markup('<div class="sf-empty"><h2>{}</h2><p>{}</p></div>').format(title, text)
