"""`sfumato batch run`: check all rows, plan, have them made, keep what comes, tell at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...pipelines.errors import BadInput
from ..console import Console, Step
from ..faults import BAD_INPUT, DONE, FAILED, INTERRUPTED
from ..interruption import asked_to_stop
from ..output import ensure_folder
from ..settings import config_file
from .manifest import FAILED as MISSED
from .manifest import Line, Manifest, only_one
from .parcels import Answer, Asked, Engine, Fault, Look, Made, Unit
from .planning import Plan, make_plan
from .report import told, write_report
from .rows import Bad, Row, Sheet, rows_of, told_bad
from .sheet import Entry
from .wish import Wish

PAUSE = 15.0
"""Seconds between two lines about how far it is, where there is no terminal."""


@dataclass(frozen=True)
class Batch:
    """Checked and planned."""

    sheet: Sheet
    bad: tuple[Bad, ...]
    plan: Plan
    lines: Mapping[Unit, Line]
    """What the manifest tells of earlier runs."""

    @property
    def rows(self) -> dict[str, Row]:
        return {row.id: row for row in self.sheet.rows}


def run_batch(
    wish: Wish, entries: Sequence[Entry], engine: Engine, console: Console, config: str | None = None
) -> int:
    """Exit code 0: every row is made. 1: not all. 2: a row is bad, and nothing was started."""
    manifest = Manifest(wish.folder)
    sheet = rows_of(entries, config_file(config))
    batch = planned(wish, sheet, engine, manifest)
    if batch.bad and not wish.keep_going:
        raise BadInput("rows", told_bad(batch.bad))
    for line in told_bad(batch.bad).splitlines():
        console.say(line)
    if wish.dry_run:
        console.data(told_plan(batch, wish), batch.plan.told())
        return FAILED if batch.bad else DONE
    ensure_folder(wish.folder)
    with only_one(wish.folder):
        console.say(batch.plan.told())
        run = Run(wish, batch, manifest, console)
        run.miss()
        run.make(engine)
        return run.end(engine)


def planned(wish: Wish, sheet: Sheet, engine: Engine, manifest: Manifest) -> Batch:
    """What is there already needs no look; all else is looked at before anything is made."""
    lines = manifest.read()
    units = {row.id: [Unit(row.id, image) for image in range(row.images)] for row in sheet.rows}
    done = manifest.done(line for unit, line in lines.items() if unit.row in units)
    new = [row for row in sheet.rows if not done.issuperset(units[row.id])]
    asked = [Asked(row.id, row.request.task, row.request.model_dump(mode="json")) for row in new]
    bad, looks = list(sheet.bad), dict[str, Look]()
    if asked and (not bad or wish.keep_going):
        for row, found in zip(new, engine.look(asked, wish.per_batch), strict=True):
            if isinstance(found, Fault):
                bad.append(Bad(row.number, (found.sentence,)))
                del units[row.id]
            else:
                looks[row.id] = found
    good = [unit for id in units for unit in units[id] if id in looks or unit in done]
    return Batch(sheet, tuple(bad), make_plan(asked, looks, good, done), lines)


def told_plan(batch: Batch, wish: Wish) -> dict[str, Any]:
    rows = batch.rows
    groups = [
        [{"row": rows[unit.row].number, "image": unit.image} for unit in group.units]
        for group in batch.plan.groups
    ]
    more = {"rows": len(rows), "twice": batch.sheet.twice, "folder": str(wish.folder), "order": groups}
    return {**batch.plan.plain(), **more, "bad": [str(one) for one in batch.bad]}


@dataclass
class Run:
    """A batch under way."""

    wish: Wish
    batch: Batch
    manifest: Manifest
    console: Console
    began: float = field(default_factory=time.monotonic)
    made: int = 0
    missed: int = 0
    cost: int = 0
    """Steps done, of the plan's."""
    interrupted: bool = False
    _told: float = field(default_factory=time.monotonic)

    def miss(self) -> None:
        """Rows that were bad, where the others are to go on."""
        lines = []
        for bad in self.batch.bad:
            known = next((row for row in self.batch.sheet.rows if row.number == bad.number), None)
            if known is not None:
                fault = Fault(Unit(known.id, 0), BAD_INPUT, "; ".join(bad.sentences))
                lines.append(self.manifest.miss(known, fault, ""))
            else:
                head = {"row": bad.number, "id": f"row {bad.number}", "image": 0, "state": MISSED}
                lines.append({**head, "error": "; ".join(bad.sentences)})
        if lines:
            self.manifest.append(lines)
        self.missed += len(lines)

    def make(self, engine: Engine) -> None:
        with asked_to_stop(self.console.say) as stopped, self.console.progress("sampling") as step:

            def within(done: int) -> None:
                step(self.cost + done, self.batch.plan.cost)

            for answer in engine.run(self.batch.plan.groups, stopped, within):
                self.keep(answer, step)
                if self.missed and not self.wish.keep_going:
                    break
            self.interrupted = stopped()

    def keep(self, answer: Answer, step: Step) -> None:
        """All results of a group, then their lines in one piece."""
        rows, lines = self.batch.rows, []
        for found in answer.results:
            if isinstance(found, Made):
                row = rows[found.unit.row]
                lines.append(self.manifest.keep(row, found, answer.worker))
                self.made += 1
            else:
                row = rows[found.unit.row]
                lines.append(self.manifest.miss(row, found, answer.worker))
                self.console.say(f"row {row.number}: {found.sentence}")
                self.missed += 1
        self.manifest.append(lines)
        self.cost += answer.group.cost
        step(self.cost, self.batch.plan.cost)
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told > PAUSE and self.cost:
            self._told = now
            left = (now - self.began) / self.cost * (self.batch.plan.cost - self.cost)
            self.console.detail(f"{self.cost} of {self.batch.plan.cost} steps, about {left:.0f} s left")

    def end(self, engine: Engine) -> int:
        """Contact sheet, report, summary."""
        seconds, counts, plan = time.monotonic() - self.began, engine.counts(), self.batch.plan
        left = plan.units - plan.done - self.made
        summary = {
            "folder": str(self.wish.folder),
            "made": self.made,
            "done_before": plan.done,
            "failed": self.missed,
            "left": left,
            "interrupted": self.interrupted,
            "seconds": round(seconds, 3),
            "loads": counts.loads,
            "encodings": counts.encodings,
            "saved": plan.plain()["saved"],
        }
        written = write_report(self.wish.folder, self.batch.sheet, self.manifest.read(), summary, plan.told())
        self.console.data({**summary, "report": str(written)}, str(written))
        self.console.say(told(summary))
        if self.interrupted:
            self.console.say("interrupted; the same command goes on")
            return INTERRUPTED
        return FAILED if self.missed or left else DONE
