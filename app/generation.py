"""The `generate` task: sample, save each image as soon as it is finished, and survive an interruption."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from ..pipelines.checkpoint import Checkpoint
from ..pipelines.errors import BadInput, SfumatoError
from ..pipelines.loop import Cancelled, Control, Event
from ..pipelines.protocols import Model
from ..pipelines.text_to_image import Images, TextToImage
from .assembly import assemble, defaults_used, machine, open_for, plan, resolve
from .console import Console
from .faults import DONE, INTERRUPTED, Failure, refuse
from .interruption import Interrupted, asked_to_stop, read_resume, resume_path
from .loras import Adapters, put_on
from .metadata import check_metadata_fits, make_record, model_hash, save_image
from .output import check_output, image_paths, write_text, write_whole
from .pictures import framed, show, size_note
from .requests import GenerateRequest
from .words import Words, words_of

T = TypeVar("T")

PREVIEW_SIDE = 256
"""Longest side of a preview, pixels."""


@dataclass(frozen=True)
class Choices:
    """Options that do not change the result."""

    output: str | None = None
    preview_every: int = 0
    sidecar: bool = False


@dataclass(frozen=True)
class Run:
    """A resolved request, ready to sample."""

    request: GenerateRequest
    model: Model
    pipe: TextToImage
    paths: tuple[Path, ...]
    choices: Choices
    words: tuple[Words, ...]
    """What the prompts come to, per image."""
    adapters: Adapters
    pictures: Mapping[str, str]
    """Hashes of the pictures given, by name."""

    def record(self, index: int) -> dict[str, Any]:
        words = self.words[index]
        record = make_record(
            self.request,
            index,
            self.model.info(),
            used=defaults_used(self.request, self.model),
            machine=machine(self.request),
            notes=self.notes(index),
        )
        record |= {"pictures": dict(self.pictures)} if self.pictures else {}
        return record | {"resolved": words.plain(), "tagged": words.tagged} | self.adapters.record(words)

    def notes(self, index: int) -> tuple[str, ...]:
        """What the user should know about an image's prompts, LoRAs and size."""
        size = size_note(self.request)
        return (*remarks(self.words[index], self.model), *self.adapters.notes, *((size,) if size else ()))

    def alike(self, first: int) -> int:
        """How many images from `first` on make a batch: those of its window under the same LoRAs."""
        end = min(first - first % self.request.batch + self.request.batch, self.request.count)
        loras = self.words[first].loras
        return next((i for i in range(first, end) if self.words[i].loras != loras), end) - first

    def job(self, first: int) -> dict[str, Any]:
        """What a checkpoint must carry to be taken up again; also its fingerprint."""
        return {
            "request": self.request.model_dump(mode="json"),
            "first": first,
            "paths": [str(path.absolute()) for path in self.paths],
            "model": model_hash(self.model.info()),
            "adapters": [self.adapters.hashes, self.adapters.words],
            "pictures": dict(self.pictures),
            "sidecar": self.choices.sidecar,
        }


def generate_images(
    request: GenerateRequest, console: Console, choices: Choices, *, dry_run: bool = False
) -> int:
    """Make and save all images of a request. With `dry_run` only tell what would be done."""
    check_output(choices.output, make=not dry_run)
    run = prepare(request, console, choices, dry_run=dry_run)
    if dry_run:
        planned = plan(run.request, run.model)
        data = {
            "request": run.request.model_dump(mode="json"),
            "plan": planned,
            "files": [str(p) for p in run.paths],
        }
        console.data(data)
        return DONE
    return make_all(run, console)


def prepare(
    request: GenerateRequest,
    console: Console,
    choices: Choices,
    *,
    dry_run: bool = False,
    words_for: Callable[[GenerateRequest], tuple[Words, ...]] = words_of,
) -> Run:
    """Open the model, fill in what was left open, build the techniques; refuse what can't be done."""
    console.detail(f"opening {request.model}")
    model, request = open_for(framed(request))
    request = resolve(request, model)
    pipe, pictures = built(lambda: show(assemble(request, model), request))
    words = words_for(request)
    adapters = put_on(request, model, words)
    paths = image_paths(choices.output, request.count, make=not dry_run)
    check_metadata_fits(paths[0], request, words)
    run = Run(request, model, pipe, tuple(paths), choices, words, adapters, pictures)
    for note in all_notes(run):
        console.say(note)
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


def make_all(run: Run, console: Console, *, first: int = 0, checkpoint: Checkpoint | None = None) -> int:
    """Sample batch by batch from image `first` on."""
    began = time.perf_counter()
    request, files = run.request, []
    try:
        with asked_to_stop(console.say) as stopped, console.progress("sampling") as step:
            while first < request.count:
                job = json.dumps(run.job(first), sort_keys=True)
                control = Control(
                    cancelled=stopped, fingerprint=job, resume=checkpoint, on_step=_watch(run, first, step)
                )
                images = sample(run, first, control)
                files += save_all(run, first, images, console)
                first, checkpoint = first + len(images.seeds), None
    except Interrupted as stop:
        hint = f"sfumato {request.task} --resume {stop.path}"
        console.say(f"{stop}, image {first + 1} of {request.count}; go on with: {hint}")
        console.data({"interrupted": True, "resume": str(stop.path), "files": files}, "")
        return INTERRUPTED
    seconds = time.perf_counter() - began
    result = {
        "task": request.task,
        "files": files,
        "request": request.model_dump(mode="json"),
        "model": dict(run.model.info()),
        "notes": all_notes(run),
        "seconds": round(seconds, 3),
    }
    console.data(result, "")
    console.say(f"{len(files)} image{'s' if len(files) != 1 else ''} in {seconds:.1f} s, seed {request.seed}")
    return DONE


def sample(run: Run, first: int, control: Control) -> Images:
    """One batch, from image `first` on. On a stop the checkpoint is saved beside the image to come."""
    request, count = run.request, run.alike(first)
    assert request.seed is not None
    words = run.words[first : first + count]
    told = [(one.prompt, one.negative) for one in words]
    same = len(set(told)) == 1
    run.adapters.weigh(words[0].loras)
    try:
        return built(
            lambda: run.pipe(
                told[0][0] if same else [prompt for prompt, _ in told],
                negative=told[0][1] if same else [negative for _, negative in told],
                width=request.width,
                height=request.height,
                steps=request.steps,
                seed=(request.seed or 0) + first,
                count=count if same else 1,
                control=control,
            )
        )
    except Cancelled as cancelled:
        path = resume_path(run.paths[first])
        cancelled.checkpoint.save(path)
        raise Interrupted(path, cancelled.checkpoint.step, len(cancelled.checkpoint.ts) - 1) from cancelled


def built(make: Callable[[], T]) -> T:
    """Run a part of the pipeline; what it refuses becomes a sentence of ours."""
    try:
        return make()
    except SfumatoError:
        raise
    except ValueError as error:
        raise BadInput("techniques", str(error)) from error
    except torch.OutOfMemoryError as error:
        raise Failure("out of GPU memory; ask for a smaller size, --batch 1 or --dtype bfloat16") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise Failure("out of memory; ask for a smaller size, --batch 1 or --dtype bfloat16") from error


def save_all(run: Run, first: int, images: Images, console: Console) -> list[dict[str, Any]]:
    """Write the batch; tell each path as soon as its file is whole."""
    files = []
    for offset, (image, seed) in enumerate(zip(images.images, images.seeds, strict=True)):
        index = first + offset
        path, record = run.paths[index], run.record(index)
        save_image(path, image, record)
        timings = {name: round(value, 3) for name, value in images.timings._asdict().items()}
        if run.choices.sidecar:
            text = json.dumps(
                {**record, "seconds": timings, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}, indent=2
            )
            write_text(path.with_suffix(".json"), text)
        preview_path(path).unlink(missing_ok=True)
        resume_path(path).unlink(missing_ok=True)
        files.append({"path": str(path), "index": index, "seed": seed, "seconds": timings})
        if console.format == "text":
            print(path, flush=True)
    return files


def preview_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.preview.png")


def _watch(run: Run, first: int, step: Callable[[int, int], None]) -> Callable[[Event], None]:
    """Moves the bar; writes a small decoded preview of the batch's first image every so many steps."""
    every = run.choices.preview_every

    def on_step(event: Event) -> None:
        step(first * event.steps + event.step, run.request.count * event.steps)
        if every and event.step % every == 0 and event.step < event.steps:
            pixels = run.model.decode(event.x0[:1])[0].float().cpu()
            data = (pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            image = Image.fromarray(data)
            image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
            write_whole(preview_path(run.paths[first]), lambda file: image.save(file, "PNG"))

    return on_step


def resume_images(name: str, console: Console, choices: Choices) -> int:
    """Take up an interrupted run: the images still to come, the first from its checkpoint."""
    checkpoint, job = read_resume(name)
    request = GenerateRequest.model_validate(job["request"])
    first, paths = int(job["first"]), tuple(Path(str(path)) for path in job["paths"])
    if len(paths) != request.count or not 0 <= first < request.count:
        raise refuse("resume", name, "is a checkpoint whose request and files disagree")
    choices = replace(choices, output=None, sidecar=bool(job.get("sidecar")))
    model, request = open_for(request)
    words = words_of(request)
    adapters = put_on(request, model, words)
    pipe, pictures = built(lambda: show(assemble(request, model), request))
    run = Run(request, model, pipe, paths, choices, words, adapters, pictures)
    if model_hash(model.info()) != job["model"]:
        raise refuse("resume", name, f"belongs to other weights than those of {request.model}")
    if job.get("adapters", [{}, {}]) != [adapters.hashes, adapters.words]:
        raise refuse("resume", name, "belongs to other LoRAs or embeddings than those there are now")
    if job.get("pictures", {}) != pictures:
        raise refuse("resume", name, "belongs to other pictures than those there are now")
    check_output(str(paths[first]), make=True)
    return make_all(run, console, first=first, checkpoint=checkpoint)
