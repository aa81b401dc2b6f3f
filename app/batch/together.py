"""Pictures of several rows in one batch: each with its own prompt, seed and record, all else the same."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ...pipelines.loop import Cancelled, Control, Event
from ...pipelines.protocols import Model
from ...pipelines.remembered import Remembered
from ...pipelines.stopping import Stopped
from ..assembly import assemble, resolve, takes_embedded_guidance
from ..converting import check_loras, converts_of, names_loras
from ..easing import built, eased
from ..faults import OutOfMemory
from ..fitting import fitted
from ..generation import Batch, Run, decoded, prepare
from ..late_loras import ID as LATE
from ..loras import Adapters, lora_file, put_on
from ..metadata import encoder
from ..optimize import opened
from ..pictures import framed, show
from ..requests import GenerateRequest
from ..shelf import Shelf
from ..words import Words, words_of
from ..work import Artifact
from .parcels import Look, Made, Unit
from .worker import Collected

OWN = ("prompt", "negative", "seed", "count", "batch")
"""Fields that may differ within a batch."""
ROOM = 8 * 512 * 512
"""Pixels of a batch where nobody says how many pictures it shall have."""
MOST = 8
CHANGED = "changed"
"""Adapters are on the model, and nobody knows which."""


def look(request: GenerateRequest, id: str, kept: Kept, work: Collected, per_batch: int) -> Look:
    """All that `generation.prepare` would refuse, and what the plan needs to know."""
    model, full, _, weights, lightened = opened(framed(request), work.shelf, work.device)
    full = resolve(full, model)
    words = words_of(full)
    check_loras(full.techniques, words)
    for name in dict.fromkeys(lora.name for one in words for lora in one.loras):
        lora_file(name, full)
    fits = (
        request.batch
        if request.batch > 1
        else max(1, min(MOST, ROOM // ((full.width or 1) * (full.height or 1))))
    )
    asked = full.model_copy(update={"batch": per_batch or fits, "count": per_batch or fits})
    key = alike(asked, Words("", "")) + f"{asked.batch} {names_loras(full)}"
    if key not in kept.plans:
        sized, _, _ = fitted(asked, model, weights, work.shelf, lightened=lightened)
        kept.plans[key] = {name: dict(sized)[name] for name in ("batch", "decode", "offload", "techniques")}
    full = full.model_copy(update=kept.plans[key])
    pipe, _ = built(lambda: show(assemble(full, model), full))
    converts = [str(one) for one in converts_of(full)]
    own = model.defaults.guidance != 1 and not takes_embedded_guidance(model)
    return Look(
        id,
        model=(
            *(full.model, str(full.parts), str(full.bridge), full.dtype, full.device),
            *(str(full.offload), *converts),
            adapter_key(full, words),
        ),
        alike=tuple(alike(full, one) for one in words),
        words=tuple((one.prompt, one.negative, acting(one)) for one in words),
        guided=pipe.guidance is not None or own,
        steps=full.steps or 1,
        most=full.batch,
    )


def alike(full: GenerateRequest, words: Words) -> str:
    """What pictures of one batch have in common, of a resolved request."""
    common = {name: value for name, value in full.model_dump(mode="json").items() if name not in OWN}
    return json.dumps([common, acting(words)], sort_keys=True)


def acting(words: Words) -> str:
    """The LoRAs of a picture and their weights; empty if there are none."""
    return json.dumps([[lora.name, lora.weight] for lora in words.loras]) if words.loras else ""


def adapter_key(request: GenerateRequest, words: Sequence[Words]) -> str:
    """What must be put on the model, at whatever weights; empty if nothing."""
    names = sorted({lora.name for one in words for lora in one.loras})
    if not names and not request.embeddings:
        return ""
    coming = [str(technique) for technique in request.techniques if technique.id == LATE]
    return json.dumps([request.lora_folder, names, list(request.embeddings), *coming])


@dataclass(eq=False)
class Kept:
    """What is on the shelf's model, and the prompts that it has encoded."""

    shelf: Shelf
    key: str = ""
    adapters: Adapters | None = None
    encoder: Remembered | None = None
    spent: int = 0
    """Encodings by encoders that are gone."""
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What memory allows, by shape."""
    _weights: str = ""

    @property
    def encodings(self) -> int:
        return self.spent + (self.encoder.calls if self.encoder else 0)

    def drop(self) -> None:
        """The model leaves the shelf, and must not stay in memory for what is kept here."""
        self._forget()
        self.key, self.adapters = "", None

    def clean(self, key: str) -> None:
        """Before a run: a model that carries what others need is not used again."""
        if self.key not in ("", key):
            self.shelf.clear()

    def put_on(self, request: GenerateRequest, model: Model, words: tuple[Words, ...]) -> Adapters:
        """The adapters of a run, put on once."""
        key = adapter_key(request, words)
        if self.adapters is None or key != self.key:
            self.key = CHANGED if key else ""  # so it stays, should putting on fail midway
            self.adapters, self.key = put_on(request, model, words), key
            self._forget()
        return self.adapters

    def remembered(self, model: Model, words: Words) -> Remembered:
        """The encoder, as LoRAs at these weights leave it."""
        weights = acting(words)
        if self.encoder is None or weights != self._weights:
            self._forget()
            self._weights, self.encoder = weights, Remembered(model)
        return self.encoder

    def _forget(self) -> None:
        self.spent, self.encoder = self.encodings, None


class Place(NamedTuple):
    """A picture of a batch: whose it is, and which of its run."""

    unit: Unit
    run: Run

    @property
    def words(self) -> Words:
        return self.run.words[self.unit.image]

    @property
    def seed(self) -> int:
        return (self.run.request.seed or 0) + self.unit.image


def make_together(
    units: Sequence[Unit], asked: Mapping[str, GenerateRequest], kept: Kept, work: Collected
) -> list[Made]:
    """All of them, sampled at once."""
    first, count = asked[units[0].row], len(units)
    words = words_of(first)
    kept.clean(adapter_key(first, words))
    whole = first.model_copy(update={"batch": count, "count": count})  # what memory is planned for
    run = prepare(whole, work, words_for=lambda full: words, adapters_for=kept.put_on)
    if run.request.batch < count:
        raise OutOfMemory(f"there is no room for {count} pictures at once")
    runs = {id: _own(run, request) for id, request in asked.items()}
    places = [Place(unit, runs[unit.row]) for unit in units]
    if count == 1:
        return [alone(places[0], kept, work)]
    batch = sample(places, kept, work)
    return [finished(place, at, batch, count) for at, place in enumerate(places)]


def _own(run: Run, request: GenerateRequest) -> Run:
    """The run of one row: all that is settled for the batch, but its own words, seed and count."""
    own = run.request.model_copy(update={name: dict(request)[name] for name in OWN})
    return replace(run, request=own, words=words_of(own))


def alone(place: Place, kept: Kept, work: Collected) -> Made:
    """One picture, which goes on with less should memory run out."""
    run, batch = eased(place.run, work, "sample", lambda run: sample([place._replace(run=run)], kept, work))
    _, made = eased(run, work, "decode", lambda run: finished(place._replace(run=run), 0, batch, 1))
    return made


def sample(places: Sequence[Place], kept: Kept, work: Collected) -> Batch:
    run, words, request = places[0].run, places[0].words, places[0].run.request
    pipe = replace(run.pipe, encoder=kept.remembered(run.model, words))
    told = [(place.words.prompt, place.words.negative) for place in places]
    same, negatives = len(set(told)) == 1, {negative for _, negative in told}
    began = time.perf_counter()

    def on_step(event: Event) -> None:
        work.progress(event.step, event.steps)

    with run.adapters.acting([words.loras] * len(places)):
        encoded = built(
            lambda: pipe.encode(
                told[0][0] if same else [prompt for prompt, _ in told],
                negative=told[0][1] if len(negatives) == 1 else [negative for _, negative in told],
                width=request.width,
                height=request.height,
                steps=request.steps,
                seed=[place.seed for place in places],
                count=len(places) if same else 1,
            )
        )
        ready = time.perf_counter()
        try:
            latents = built(lambda: pipe.sample(encoded, Control(on_step=on_step, cancelled=work.cancelled)))
        except Cancelled as cancelled:
            raise Stopped(str(cancelled)) from cancelled
    return Batch(latents, encoded.seeds, ready - began, time.perf_counter() - ready)


def finished(place: Place, at: int, batch: Batch, together: int) -> Made:
    """One picture of the batch, with the record that makes it again by itself."""
    began, run, image = time.perf_counter(), place.run, place.unit.image
    picture = decoded(run, batch, at)
    work = Collected(Shelf())
    seconds = {
        "encode": batch.encode / together,
        "sample": batch.sample / together,
        "decode": time.perf_counter() - began,
    }
    record = run.record(image) | ({"together": together} if together > 1 else {})
    name = f"{image:04d}.png"
    work.keep(Artifact(name, "image/png", record), encoder(picture, "PNG", record))
    about = {"seed": place.seed, "seconds": {name: round(value, 3) for name, value in seconds.items()}}
    return Made(place.unit, tuple(work.files), about, run.notes(image), together)
