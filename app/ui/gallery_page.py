"""The gallery: all that was made, searched by words; comparing two pictures; how a result was made."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from ...pipelines.errors import SfumatoError
from ..jobs.store import COMPLETED, Job, Kept
from ..server.desk import Desk
from ..settings import make_request
from .cards import cards, empty
from .panels import button, code
from .recalled import from_kept
from .spelling import as_command, as_json, as_python

PAGE = 24
MOST_WORDS = 12


class Look(NamedTuple):
    """What of the gallery is looked at."""

    words: str = ""
    task: str = ""
    before: int | None = None


class Spelled(NamedTuple):
    command: str
    python: str
    json: str


def gallery(desk: Desk, look: Look, receivers: tuple[str, ...]) -> tuple[Markup, int | None]:
    """A page of it, newest first, and the job before which the next one begins."""
    jobs: list[Job] = desk.store.history(
        look.words.split()[:MOST_WORDS],
        states=(COMPLETED,),
        task=look.task or None,
        before=look.before,
        limit=PAGE,
    )
    inner = cards(desk, jobs, receivers)
    if not inner:
        told = (
            "No result has all these words." if look.words or look.task else "What is finished shows up here."
        )
        return empty("Nothing here", told), None
    return inner, jobs[-1].id if len(jobs) == PAGE else None


def comparison(desk: Desk, a: str, b: str) -> Markup:
    """Two pictures under one slider, and side by side."""
    left, right = _picture(desk, a), _picture(desk, b)
    if left is None or right is None:
        chosen = " and ".join(name for name, one in (("A", left), ("B", right)) if one is not None)
        told = f"{chosen} is chosen. " if chosen else ""
        return empty("Compare two pictures", f"{told}Press A and B below two results.")
    shared = Markup(
        '<div class="sf-compare"><img src="{b}" alt="B: {bt}"><img class="sf-over" src="{a}" alt="A: {at}">'
        '<input type="range" min="0" max="100" value="50" aria-label="How much of A is shown"></div>'
        '<div class="sf-side"><figure><img src="{a}" alt="A: {at}"><figcaption>A · {at}</figcaption></figure>'
        '<figure><img src="{b}" alt="B: {bt}"><figcaption>B · {bt}</figcaption></figure></div>{swap}'
    )
    return shared.format(
        a=f"/v1/artifacts/{left.hash}",
        b=f"/v1/artifacts/{right.hash}",
        at=_title(desk, left),
        bt=_title(desk, right),
        swap=button("swap", "", "Swap A and B"),
    )


def _picture(desk: Desk, hash: str) -> Kept | None:
    kept = found(desk, hash)
    return kept if kept is not None and kept.media.startswith("image/") else None


def found(desk: Desk, hash: str) -> Kept | None:
    try:
        return desk.store.artifact(hash) if hash else None
    except SfumatoError:  # deleted meanwhile
        return None


def _title(desk: Desk, kept: Kept) -> str:
    job = desk.store.get(kept.job)
    return job.summary or f"{job.task} {kept.name}"


def details(desk: Desk, hash: str) -> tuple[Markup, Spelled]:
    """How a result was made: its record, and what makes it again in each of the other entrances."""
    kept = found(desk, hash)
    if kept is None:
        return empty("Gone", "This result was deleted."), Spelled("", "", "")
    recalled = from_kept(kept, desk)
    request = make_request(desk.tasks[recalled.task].request, recalled.values)
    about = {"job": kept.job, "file": kept.name, "bytes": kept.bytes, **kept.about}
    told = Markup("<h3>{}</h3>{}<h3>Record</h3>{}").format(_title(desk, kept), code(about), code(kept.record))
    return told, Spelled(as_command(request), as_python(request), as_json(request))
