"""What a runner writes into the store: claims, progress, results, ends. A row that is no longer its own stops it."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..work import Artifact
from .artifacts import shelve
from .locks import device_lock
from .store import CANCELLED, COMPLETED, FAILED, INTERRUPTED, RUNNING, Job, Store

LOST = "lost"


class Lost(Exception):
    """The job was taken from this runner."""


class Claim:
    """A job in the hands of one runner."""

    def __init__(self, store: Store, id: int, runner: str) -> None:
        self.store, self.id, self.runner = store, id, runner
        self._version = -1
        self._wanted = ""

    def wanted(self) -> str:
        """`cancel`, `pause`, `lost` or nothing. Microseconds, as it is asked before every network call."""
        version = self.store.version()
        if version != self._version:
            row = self.store.db.execute(
                "SELECT wanted FROM jobs WHERE id = ? AND runner = ? AND state = 'running'",
                (self.id, self.runner),
            ).fetchone()
            self._version, self._wanted = version, LOST if row is None else str(row[0])
        return self._wanted

    def phase(self, name: str) -> None:
        with self.store.change():
            self._set("phase = ?", name)

    def progress(self, step: int, steps: int, previews: int) -> None:
        with self.store.change():
            self._set("step = ?, steps = ?, previews = ?", step, steps, previews)

    def advanced(self, step: int, steps: int) -> None:
        """A checkpoint is on the disk."""
        with self.store.change():
            self._set("advances = advances + 1")
            self.store.append(self.id, "checkpoint", {"step": step, "steps": steps})

    def note(self, text: str) -> None:
        with self.store.change():
            self._set("advances = advances")
            self.store.append(self.id, "note", {"text": text})

    def keep(self, artifact: Artifact, part: Path, hash: str) -> None:
        """A finished file becomes a result."""
        with self.store.change():
            self._set("advances = advances + 1")
            self._shelve(artifact, part, hash)
            self.store.append(self.id, "kept", {"name": artifact.name, "hash": hash, **artifact.about})

    def complete(self, manifest: Artifact, part: Path, hash: str) -> None:
        with self.store.change(durable=True):
            self._set(
                "state = ?, finished = ?, runner = '', wanted = '', phase = '', step = steps",
                COMPLETED,
                time.time(),
            )
            self._shelve(manifest, part, hash)
            self.store.append(self.id, COMPLETED, {"manifest": hash})

    def stopped(self) -> str:
        """The run ended on request: for good, until it is resumed, or until the next runner."""
        with self.store.change(durable=True) as db:
            row = db.execute("SELECT wanted FROM jobs WHERE id = ?", (self.id,)).fetchone()
            wanted = str(row[0])
            state = CANCELLED if wanted == "cancel" else INTERRUPTED
            finished = time.time() if state == CANCELLED else None
            self._set(
                "state = ?, held = ?, finished = ?, runner = '', wanted = ''",
                state,
                int(wanted == "pause"),
                finished,
            )
            self.store.append(self.id, state, {"paused": wanted == "pause"})
        return state

    def fail(self, sentence: str) -> None:
        with self.store.change(durable=True):
            self._set(
                "state = ?, error = ?, finished = ?, runner = '', wanted = ''", FAILED, sentence, time.time()
            )
            self.store.append(self.id, FAILED, {"error": sentence})

    def _shelve(self, artifact: Artifact, part: Path, hash: str) -> None:
        suffix, size = Path(artifact.name).suffix, part.stat().st_size
        shelve(self.store.home, part, hash, suffix)
        texts = [json.dumps(value, default=str) for value in (artifact.record, artifact.about)]
        row = (self.id, artifact.name, hash, suffix, size, artifact.media, *texts, time.time())
        self.store.db.execute(f"REPLACE INTO artifacts VALUES ({', '.join('?' * len(row))})", row)

    def _set(self, what: str, *values: Any) -> None:
        found = self.store.db.execute(
            f"UPDATE jobs SET {what} WHERE id = ? AND runner = ? AND state = 'running'",
            (*values, self.id, self.runner),
        )
        if found.rowcount != 1:
            raise Lost(f"job {self.id} was taken from this runner")


def claim(store: Store, runner: str, device: str, others: Collection[str] = ()) -> Claim | None:
    """The next waiting job, now running; none that asks for one of `others`, the devices of other runners."""
    marks = ", ".join("?" * len(others))
    with store.change() as db:
        row = db.execute(
            "UPDATE jobs SET state = ?, runner = ?, runs_on = ?, started = COALESCE(started, ?), "
            "attempts = attempts + 1, wanted = '', phase = '' WHERE id = (SELECT id FROM jobs "
            f"WHERE state IN ('queued', 'interrupted') AND held = 0 AND device NOT IN ({marks}) "
            "ORDER BY priority DESC, place LIMIT 1) RETURNING id, attempts",
            (RUNNING, runner, device, time.time(), *others),
        ).fetchone()
        if row is None:
            return None
        store.append(int(row[0]), RUNNING, {"device": device, "attempt": row[1]})
    return Claim(store, int(row[0]), runner)


def recover(store: Store, strikes: int) -> list[Job]:
    """Jobs that are running by name only, as their runner has died: interrupted, or failed after so many strikes."""
    found: list[Job] = []
    devices = store.db.execute("SELECT DISTINCT runs_on FROM jobs WHERE state = 'running'").fetchall()
    for (device,) in devices:
        with device_lock(store.home, str(device)) as held:
            if held:
                found += orphaned(store, str(device), strikes)
    return found


def orphaned(store: Store, device: str, strikes: int) -> list[Job]:
    """The same for one device, by whoever holds its lock."""
    ids = []
    with store.change(durable=True) as db:
        rows = db.execute(
            "SELECT id, wanted, phase, advances, fallen, strikes FROM jobs WHERE state = 'running' AND runs_on = ?",
            (device,),
        ).fetchall()
        for id, wanted, phase, advances, fallen, before in rows:
            count = 1 if advances > fallen else before + 1
            change: dict[str, Any] = {"state": INTERRUPTED, "held": int(wanted == "pause"), "error": ""}
            if wanted == "cancel":
                change |= {"state": CANCELLED, "finished": time.time()}
            elif count >= strikes:
                change |= {"state": FAILED, "finished": time.time(), "error": _died(id, phase, count)}
            change |= {"runner": "", "wanted": "", "fallen": advances, "strikes": count}
            _update(store, id, change)
            data = {"error": change["error"]} if change["error"] else {"died": True, "phase": phase}
            store.append(id, str(change["state"]), data)
            ids.append(id)
    return [store.get(id) for id in ids]


def _update(store: Store, id: int, change: Mapping[str, Any]) -> None:
    names = ", ".join(f"{name} = ?" for name in change)
    store.db.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*change.values(), id))


def _died(id: int, phase: str, count: int) -> str:
    where = f" in the phase {phase!r}" if phase else ""
    return (
        f"the runner's process died {count} times{where} without getting any further, as it does when memory runs "
        f"out; ask for a smaller size or batch, or try again: `sfumato jobs retry {id}`"
    )
