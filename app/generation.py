"""The `generate` task: sample batch by batch, and hand over each image as soon as it is finished."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ..pipelines.checkpoint import Checkpoint
from ..pipelines.loop import Cancelled, Control, Event
from ..pipelines.protocols import Model
from ..pipelines.stopping import Stopped
from ..pipelines.text_to_image import TextToImage, as_images
from .assembly import assemble, defaults_used, machine, resolve
from .converting import check_loras, without_kernels
from .easing import built, eased, place
from .fitting import fitted
from .interruption import earlier_checkpoint
from .loras import Adapters, put_on
from .metadata import check_metadata_fits, encoder, make_record, model_hash
from .optimize import opened
from .output import FORMATS
from .pictures import framed, show, size_note
from .planning import Estimate, plan_notes, plan_told
from .requests import GenerateRequest
from .sharing import Parallel, check_asked, check_shared
from .weighing import Weights
from .words import Words, words_of
from .work import Artifact, Outcome, Work

PREVIEW_SIDE = 256
"""Longest side of a preview, pixels."""


@dataclass(frozen=True)
class Run:
    """A resolved request, ready to sample."""

    request: GenerateRequest
    model: Model
    pipe: TextToImage
    words: tuple[Words, ...]
    """What the prompts come to, per image."""
    adapters: Adapters
    pictures: Mapping[str, str]
    """Hashes of the pictures given, by name."""
    weights: Weights
    estimate: Estimate | None
    """None where it was plain that the run fits."""
    suffix: str = ".png"
    told: tuple[str, ...] = ()
    """Notes from before the model was opened."""
    together: str = ""
    """The processes that make it, as cfg=2; empty if this one does alone."""

    def name(self, index: int) -> str:
        return f"{index:04d}{self.suffix}"

    def record(self, index: int) -> dict[str, Any]:
        words = self.words[index]
        shared = {"parallel": self.together} if self.together else {}
        record = make_record(
            self.adapters.settled(self.request),
            index,
            self.model.info(),
            used=defaults_used(self.request, self.model),
            machine=machine(self.request) | shared,
            notes=self.notes(index),
        )
        record |= {"pictures": dict(self.pictures)} if self.pictures else {}
        return record | {"resolved": words.plain(), "tagged": words.tagged} | self.adapters.record(words)

    def notes(self, index: int) -> tuple[str, ...]:
        """What the user should know about an image's prompts, LoRAs and size."""
        size = size_note(self.request)
        after = (*self.adapters.told, *((size,) if size else ()), *plan_notes(self.request, self.model))
        after = (*after, *without_kernels(self.request))
        return (*self.told, *remarks(self.words[index], self.model), *after)

    def alike(self, first: int) -> int:
        """How many images from `first` on make a batch: those of its window, under the same LoRAs if they must be."""
        end = min(first - first % self.request.batch + self.request.batch, self.request.count)
        if self.adapters.mixes:
            return end - first
        loras = self.words[first].loras
        return next((i for i in range(first, end) if self.words[i].loras != loras), end) - first

    def job(self, first: int) -> dict[str, Any]:
        """What a checkpoint must carry to be taken up again."""
        return {
            "request": self.request.model_dump(mode="json"),
            "first": first,
            "model": model_hash(self.model.info()),
            "adapters": self.adapters.marks(),
            "pictures": dict(self.pictures),
        }


class Batch(NamedTuple):
    """Images between sampling and decoding."""

    latents: Tensor
    seeds: tuple[int, ...]
    encode: float
    """Seconds."""
    sample: float


def generate(request: GenerateRequest, work: Work) -> Outcome:
    """The task."""
    try:
        return make_all(prepare(request, work), work)
    finally:
        if request.embeddings or request.loras or request.wildcards or "<lora:" in request.prompt:
            work.shelf.clear()  # LoRAs and learned words stay on a model; the next request gets a clean one


def prepare(
    request: GenerateRequest,
    work: Work,
    *,
    suffix: str = ".png",
    words_for: Callable[[GenerateRequest], tuple[Words, ...]] = words_of,
    adapters_for: Callable[[GenerateRequest, Model, tuple[Words, ...]], Adapters] = put_on,
    timed: bool = False,
    parallel: Parallel | None = None,
) -> Run:
    """Open the model, fill in what was left open, build the techniques; refuse what can't be done or won't fit."""
    work.phase("load")
    if parallel is not None:
        check_asked(parallel, request)
    cut = parallel is not None and parallel.ulysses > 1
    model, request, told, weights, early = opened(framed(request), work.shelf, work.device, cut=cut)
    asked = resolve(request, model)
    request, found, weights = fitted(asked, model, weights, work.shelf, lightened=early, timed=timed)
    place(model, request)
    pipe, pictures = built(lambda: show(assemble(request, model), request))
    if parallel is not None:
        check_shared(parallel, request, pipe)
    words = words_for(request)
    check_loras(request.techniques, words)
    adapters = adapters_for(request, model, words)
    check_metadata_fits(Path(f"0000{suffix}"), request, words)
    run = Run(request, model, pipe, words, adapters, pictures, weights, found, suffix, told)
    for note in (*all_notes(run), *plan_told(found)):
        work.note(note)
    return run


def all_notes(run: Run) -> list[str]:
    """Those of all images, each once."""
    different = {words: index for index, words in enumerate(run.words)}
    return list(dict.fromkeys(note for index in different.values() for note in run.notes(index)))


def remarks(words: Words, model: Model) -> tuple[str, ...]:
    """What the user should know about the prompts; kept in the record too."""
    notes = [] if words.prompt.strip() else ["prompt: empty, the model is free to choose"]
    for name, text in (("prompt", words.prompt), ("negative", words.negative)):
        if model.reads(text) != text:
            notes.append(
                f"{name}: {model.info()['name']} knows no weights; it reads: {model.reads(text)[:200]}"
            )
        dropped = model.dropped(text) if text else ""
        if dropped:
            shown = dropped if len(dropped) <= 200 else f"{dropped[:200]}…"
            notes.append(
                f"{name}: {len(dropped.split())} words are beyond the {model.limits.tokens} tokens that "
                f"{model.info()['name']} reads; left out: {shown}"
            )
    return tuple(notes)


def make_all(run: Run, work: Work) -> Outcome:
    """Sample batch by batch, without what was kept before an interruption."""
    request, first = run.request, 0
    earlier = earlier_checkpoint(run, work)
    while first < request.count:
        count = run.alike(first)
        if not {run.name(index) for index in range(first, first + count)} <= set(work.kept()):
            run, batch = eased(run, work, "sample", partial(sample, first=first, work=work, earlier=earlier))
            count = len(batch.seeds)
            for offset in range(count):
                one = partial(keep, index=first + offset, batch=batch, offset=offset, work=work)
                run, _ = eased(run, work, "decode", one)
        first += count
    return Outcome(run.request, run.model.info(), tuple(all_notes(run)))


def sample(run: Run, first: int, work: Work, earlier: Checkpoint | None = None) -> Batch:
    """One batch, from image `first` on; from its checkpoint, if `earlier` is one of this batch."""
    words = run.words[first : first + run.alike(first)]
    with run.adapters.acting([one.loras for one in words]):
        return _sampled(run, first, words, work, earlier)


def _sampled(run: Run, first: int, words: tuple[Words, ...], work: Work, earlier: Checkpoint | None) -> Batch:
    request, count = run.request, len(words)
    told = [(one.prompt, one.negative) for one in words]
    same = len(set(told)) == 1
    fingerprint = json.dumps(run.job(first) | dict(work.about()), sort_keys=True)
    began = time.perf_counter()
    work.phase("encode")
    encoded = built(
        lambda: run.pipe.encode(
            told[0][0] if same else [prompt for prompt, _ in told],
            negative=told[0][1] if same else [negative for _, negative in told],
            width=request.width,
            height=request.height,
            steps=request.steps,
            seed=(request.seed or 0) + first,
            count=count if same else 1,
        )
    )
    ready = time.perf_counter()
    work.phase("sample")
    control = Control(
        on_step=_watch(run, first, work),
        cancelled=work.cancelled,
        on_checkpoint=lambda at: work.checkpoint(at.save, at.step, len(at.ts) - 1),
        fingerprint=fingerprint,
        resume=earlier if earlier is not None and earlier.fingerprint == fingerprint else None,
    )
    try:
        latents = built(lambda: run.pipe.sample(encoded, control))
    except Cancelled as cancelled:
        at = cancelled.checkpoint
        work.checkpoint(at.save, at.step, len(at.ts) - 1)
        raise Stopped(str(cancelled)) from cancelled
    return Batch(latents, encoded.seeds, ready - began, time.perf_counter() - ready)


def keep(run: Run, index: int, batch: Batch, offset: int, work: Work) -> None:
    """Decode one image of a batch and hand it over."""
    name = run.name(index)
    if name in work.kept():
        return
    began = time.perf_counter()
    work.phase("decode")
    image = decoded(run, batch, offset)
    seconds = {"encode": batch.encode, "sample": batch.sample, "decode": time.perf_counter() - began}
    work.phase("write")
    record, kind = run.record(index), FORMATS[run.suffix]
    about = {
        "index": index,
        "seed": batch.seeds[offset],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    media = f"image/{kind.lower()}"
    work.keep(Artifact(name, media, record, about), encoder(image, kind, record))


def decoded(run: Run, batch: Batch, offset: int) -> Image.Image:
    return as_images(built(lambda: run.pipe.decode(batch.latents[offset : offset + 1])))[0]


def _watch(run: Run, first: int, work: Work) -> Callable[[Event], None]:
    """Tells how far the run is, and offers a small picture of the batch's first image."""

    def on_step(event: Event) -> None:
        work.progress(first * event.steps + event.step, run.request.count * event.steps)
        if event.step < event.steps:
            work.preview(event.step, lambda: small(run.model, event.x0[:1]))

    return on_step


def small(model: Model, x0: Tensor) -> Image.Image:
    """One latent as a picture: projected if the model knows how, which costs next to nothing, else decoded."""
    if model.projection is not None:
        image = Image.fromarray(model.projection(x0)[0].permute(1, 2, 0).cpu().numpy())
    else:
        image = as_images(model.decode(x0).float().cpu())[0]
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return image
