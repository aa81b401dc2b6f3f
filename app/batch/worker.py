"""A worker: makes groups of rows, and keeps between them what the next may need: model, adapters, encoded prompts."""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...pipelines.stopping import Stopped, stoppable
from ..faults import BAD_INPUT, DEFECTS, FAILED, describe
from ..requests import GenerateRequest, Request
from ..settings import make_request
from ..shelf import Shelf
from ..tasks import TASKS, Task
from ..work import Artifact, Write
from .parcels import Asked, Counts, Fault, File, Group, Look, Made, Unit

if TYPE_CHECKING:
    from PIL import Image

    from ...pipelines.protocols import Model
    from .together import Kept


def _never() -> bool:
    return False


def _silent(done: int, total: int) -> None:
    return None


def _nothing() -> None:
    return None


@dataclass
class Counting(Shelf):
    """Counts the models that are opened, and tells when one is put away."""

    loads: int = 0
    dropped: Callable[[], None] = _nothing

    def take(self, key: tuple[Any, ...], places: tuple[Path, ...], make: Callable[[], Model]) -> Model:
        def counted() -> Model:
            self.loads += 1
            return make()

        return super().take(key, places, counted)

    def clear(self) -> None:
        self.dropped()
        super().clear()


@dataclass
class Collected:
    """A task's `Work` whose results stay in memory until the batch writes them."""

    shelf: Shelf
    device: str = "auto"
    stopped: Callable[[], bool] = _never
    step: Callable[[int, int], None] = _silent
    files: list[File] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def cancelled(self) -> bool:
        return self.stopped()

    def phase(self, name: str) -> None:
        return None

    def progress(self, step: int, steps: int) -> None:
        self.step(step, steps)

    def preview(self, step: int, render: Callable[[], Image.Image]) -> None:
        return None

    def about(self) -> Mapping[str, Any]:
        return {}

    def checkpoint(self, save: Callable[[Path], object], step: int, steps: int) -> None:
        return None

    def saved(self) -> Path | None:
        return None

    def keep(self, artifact: Artifact, write: Write) -> None:
        buffer = io.BytesIO()
        write(buffer)
        self.files = [file for file in self.files if file.name != artifact.name]
        self.files.append(File(artifact.name, artifact.media, buffer.getvalue()))
        self.told |= artifact.about

    def kept(self) -> list[str]:
        return []

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Worker:
    """Belongs to one thread of one process; `device` is what a request's `auto` means."""

    device: str = "auto"
    tasks: Iterable[Task] = TASKS
    stopped: Callable[[], bool] = _never
    step: Callable[[int, int], None] = _silent
    shelf: Counting = field(default_factory=Counting)
    _kept: Kept | None = None

    def work(self) -> Collected:
        return Collected(self.shelf, self.device, self.stopped, self.step)

    @property
    def kept(self) -> Kept:
        if self._kept is None:
            from .together import Kept

            self._kept = Kept(self.shelf)
            self.shelf.dropped = self._kept.drop
        return self._kept

    def look(self, rows: Sequence[Asked], per_batch: int = 0) -> list[Look | Fault]:
        """Everything that can be wrong with them, in their order. Opens models, the first row's last."""
        order: dict[str, list[int]] = {}
        for at, row in enumerate(rows):
            order.setdefault(str(row.request.get("model", "")), []).append(at)
        found: dict[int, Look | Fault] = {}
        for places in reversed(order.values()):
            for at in places:
                found[at] = self._look(rows[at], per_batch)
        return [found[at] for at in range(len(rows))]

    def _look(self, row: Asked, per_batch: int) -> Look | Fault:
        try:
            _, request = self._task(row)
            if isinstance(request, GenerateRequest):
                from .together import look

                return look(request, row.id, self.kept, self.work(), per_batch)
            _check(request)
            return Look(row.id)
        except DEFECTS as error:
            return self._fault(Unit(row.id, 0), error)

    def run(self, group: Group) -> list[Made | Fault]:
        """Each unit of the group, made or not. Raises Stopped if it was asked to stop."""
        with stoppable(self.stopped):
            return self._attempt(group)

    def counts(self) -> Counts:
        return Counts(self.shelf.loads, 0 if self._kept is None else self._kept.encodings)

    def _attempt(self, group: Group) -> list[Made | Fault]:
        try:
            return list(self._made(group))
        except Stopped:
            raise
        except DEFECTS as error:
            fault = self._fault(group.units[0], error)
        if len(group.units) == 1:
            return [fault]
        note = f"made alone, as its batch of {len(group.units)} could not be made: {fault.sentence}"
        found: list[Made | Fault] = []
        for unit in group.units:
            own = tuple(row for row in group.asked if row.id == unit.row)
            (one,) = self._attempt(Group((unit,), own))
            found.append(one._replace(notes=(*one.notes, note)) if isinstance(one, Made) else one)
        return found

    def _made(self, group: Group) -> list[Made]:
        known = {row.id: self._task(row) for row in group.asked}
        task, request = known[group.units[0].row]
        if isinstance(request, GenerateRequest):
            from .together import make_together

            asked = {id: own for id, (_, own) in known.items() if isinstance(own, GenerateRequest)}
            return make_together(group.units, asked, self.kept, self.work())
        work = self.work()
        outcome = task.job(request, work)
        notes = tuple(dict.fromkeys((*work.notes, *outcome.notes)))
        return [Made(group.units[0], tuple(work.files), work.told, notes)]

    def _task(self, row: Asked) -> tuple[Task, Request]:
        task = next(task for task in self.tasks if task.request.task == row.task)
        return task, make_request(task.request, row.request)

    def _fault(self, unit: Unit, error: Exception) -> Fault:
        described = describe(error)
        if described is None or described[0] != BAD_INPUT:
            self.shelf.clear()  # what failed may have left it half-changed, or without memory
        if described is None:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            sentence = f"a defect of sfumato: {type(error).__name__}: {str(error)[:200]} ({where})"
            return Fault(unit, FAILED, sentence)
        return Fault(unit, described[0], described[1].replace("\n", "; "))


def _check(request: Request) -> None:
    """What a task without a model refuses by itself."""
    from ..requests import WorldRequest
    from ..worlds import prepare

    if isinstance(request, WorldRequest):
        prepare(request)
