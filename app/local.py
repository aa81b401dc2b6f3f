"""A task in this process, at the user's command: files where the user says, talk on the console, Ctrl+C."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipelines.stopping import Stopped
from .console import Console, Step
from .faults import DONE, INTERRUPTED, refuse
from .interruption import asked_to_stop, read_checkpoint, resume_path, strange
from .output import FORMATS, check_output, image_folder, image_paths, write_text, write_whole
from .requests import GenerateRequest, Request
from .shelf import Shelf
from .work import Artifact, Job, Outcome, Write

if TYPE_CHECKING:
    from PIL import Image

    from .generation import Run
    from .sharing import Parallel


@dataclass(frozen=True)
class Choices:
    """Options that do not change the result."""

    output: str | None = None
    preview_every: int = 0
    sidecar: bool = False


def _never() -> bool:
    return False


def _silent(done: int, total: int) -> None:
    return None


@dataclass
class LocalWork:
    """Work whose results are files."""

    console: Console
    choices: Choices = field(default_factory=Choices)
    paths: tuple[Path, ...] = ()
    """Where numbered results go; others take their own names in `folder`."""
    folder: Path = field(default_factory=Path)
    done: list[str] = field(default_factory=list)
    earlier: Path | None = None
    files: list[dict[str, Any]] = field(default_factory=list)
    shelf: Shelf = field(default_factory=Shelf)
    device: str = "auto"
    stopped: Callable[[], bool] = _never
    step: Step = _silent
    last: tuple[Callable[[Path], object], int, int] | None = None

    def cancelled(self) -> bool:
        return self.stopped()

    def phase(self, name: str) -> None:
        """Ctrl+C stops at the next step, where a checkpoint can be made; what is short goes to its end."""
        self.console.detail(name)

    def progress(self, step: int, steps: int) -> None:
        self.step(step, steps)

    def preview(self, step: int, render: Callable[[], Image.Image]) -> None:
        if self.choices.preview_every and step % self.choices.preview_every == 0:
            image = render()
            write_whole(preview_path(self.next()), lambda file: image.save(file, "PNG"))

    def about(self) -> Mapping[str, Any]:
        paths = [str(path.absolute()) for path in self.paths]
        return {"paths": paths, "sidecar": self.choices.sidecar}

    def checkpoint(self, save: Callable[[Path], object], step: int, steps: int) -> None:
        self.last = (save, step, steps)

    def saved(self) -> Path | None:
        return self.earlier

    def kept(self) -> list[str]:
        return self.done

    def note(self, text: str) -> None:
        self.console.say(text)

    def next(self) -> Path:
        """Where the next result goes."""
        return self.paths[len(self.done)]

    def keep(self, artifact: Artifact, write: Write) -> None:
        path = self.next() if self.paths else self.folder / artifact.name
        write_whole(path, write)
        if self.choices.sidecar:
            more = {
                "seconds": artifact.about.get("seconds"),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            write_text(path.with_suffix(".json"), json.dumps({**artifact.record, **more}, indent=2))
        preview_path(path).unlink(missing_ok=True)
        resume_path(path).unlink(missing_ok=True)
        self.done.append(artifact.name)
        self.files.append({"path": str(path), **artifact.about})
        if self.console.format == "text":
            print(path, flush=True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Ctrl+C asks to stop, and the terminal has a bar."""
        with asked_to_stop(self.console.say) as self.stopped, self.console.progress("sampling") as self.step:
            yield


def preview_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.preview.png")


def generate_images(
    request: GenerateRequest,
    console: Console,
    choices: Choices,
    *,
    dry_run: bool = False,
    parallel: Parallel | None = None,
) -> int:
    """Make and save all images of a request. With `dry_run` only tell what would be done, here or by `parallel`."""
    from .assembly import plan
    from .generation import prepare

    check_output(choices.output, make=not dry_run)
    work = LocalWork(console, choices)
    folder = (
        choices.output is None or choices.output.endswith("/") or Path(choices.output).expanduser().is_dir()
    )
    suffix = ".png" if folder else Path(str(choices.output)).suffix.lower()
    run = prepare(request, work, suffix=suffix, timed=dry_run, parallel=parallel)
    work.paths = tuple(image_paths(choices.output, request.count, make=not dry_run))
    if dry_run:
        assert run.estimate is not None
        data = {
            "request": run.request.model_dump(mode="json"),
            "plan": plan(run.request, run.model, run.estimate),
            "files": [str(path) for path in work.paths],
        }
        console.data(data)
        return DONE
    return finish(run, work)


def resume_images(name: str, console: Console, choices: Choices) -> int:
    """Take up an interrupted run: the images still to come, the first from its checkpoint."""
    from .generation import prepare

    work, request, first = taken_up(name, console, choices)
    run = prepare(request, work, suffix=work.paths[0].suffix.lower())
    _, job = read_checkpoint(name)
    why = strange(run, job)
    if why is not None:
        raise refuse("resume", name, why)
    work.done = [run.name(index) for index in range(first)]
    check_output(str(work.paths[first]), make=True)
    return finish(run, work)


def taken_up(name: str, console: Console, choices: Choices) -> tuple[LocalWork, GenerateRequest, int]:
    """Work to go on with, its request, and how many of its images are there already."""
    _, job = read_checkpoint(name)
    if "paths" not in job:
        raise refuse("resume", name, "belongs to a job; `sfumato jobs run` goes on with it")
    request = GenerateRequest.model_validate(job["request"])
    first, paths = int(job["first"]), tuple(Path(str(path)) for path in job["paths"])
    if len(paths) != request.count or not 0 <= first < request.count:
        raise refuse("resume", name, "is a checkpoint whose request and files disagree")
    choices = Choices(None, choices.preview_every, bool(job.get("sidecar")))
    return LocalWork(console, choices, paths, earlier=Path(name).expanduser()), request, first


def run_here(request: Request, job: Job, console: Console, output: str | None) -> int:
    """Any task, its results in a folder under their own names."""
    began, work = time.perf_counter(), LocalWork(console, folder=image_folder(output))
    try:
        with work.watched():
            outcome = job(request, work)
    except Stopped:
        console.say(f"interrupted; a job can go on later: `sfumato jobs submit {request.task} --help`")
        return INTERRUPTED
    tell(outcome, work, time.perf_counter() - began)
    return DONE


def finish(run: Run, work: LocalWork) -> int:
    """Run to the end or to a checkpoint, and tell."""
    from .generation import make_all

    began, request, console = time.perf_counter(), run.request, work.console
    try:
        with work.watched():
            outcome = make_all(run, work)
    except Stopped:
        assert work.last is not None
        save, step, steps = work.last
        path = resume_path(work.next())
        save(path)
        hint = f"sfumato {request.task} --resume {path}"
        where = f"step {step} of {steps}, image {len(work.done) + 1} of {request.count}"
        console.say(f"interrupted at {where}; go on with: {hint}")
        console.data({"interrupted": True, "resume": str(path), "files": work.files}, "")
        return INTERRUPTED
    tell(outcome, work, time.perf_counter() - began)
    return DONE


def tell(outcome: Outcome, work: LocalWork, seconds: float) -> None:
    request, files = outcome.request, work.files
    result = {
        "task": request.task,
        "files": files,
        "request": request.model_dump(mode="json"),
        "model": dict(outcome.model),
        "notes": list(outcome.notes),
        "seconds": round(seconds, 3),
    }
    work.console.data(result, "")
    what = "image" if all(str(row["path"]).endswith(tuple(FORMATS)) for row in files) else "file"
    seed = dict(request).get("seed")
    told = "" if seed is None else f", seed {seed}"
    work.console.say(f"{len(files)} {what}{'s' if len(files) != 1 else ''} in {seconds:.1f} s{told}")
