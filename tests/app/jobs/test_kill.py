"""Killed at any moment: nothing is lost, and the results are those of an undisturbed run, to the byte."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from killing import Spot, child, end
from sfumato.app import assembly
from sfumato.app.jobs import artifacts, control
from sfumato.app.jobs.ledger import recover
from sfumato.app.jobs.store import COMPLETED, INTERRUPTED, QUEUED, Store
from sfumato.app.requests import GenerateRequest
from sfumato.app.shelf import Shelf

SEEDS = (1, 2, 3)
RANDOM_KILLS = 30
SPOTS = [
    Spot(place, call, when)
    for place, calls, whens in (
        ("decode", (1, 2), ("before", "after")),
        ("write", (1, 2, 3), ("before", "within", "after")),
        ("rename", (1, 3, 7), ("before", "after")),
        ("shelve", (1, 2, 3), ("before", "after")),
        ("commit", (1, 2, 5, 9, 14), ("before", "after")),
    )
    for call in calls
    for when in whens
]


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    """The built-in model, opened once; children inherit it."""
    kept = Shelf()
    model = assembly.open_for(assembly.on_device(asked(0)), kept).model
    model.info()
    return kept


def asked(seed: int) -> GenerateRequest:
    return GenerateRequest(
        prompt="a red cube", width=64, height=64, steps=3, seed=seed, count=2, device="cpu", dtype="float32"
    )


def results(store: Store, id: int) -> dict[str, str]:
    """Names and hashes of a job's pictures."""
    return {kept.name: kept.hash for kept in store.artifacts(id) if kept.media == "image/png"}


def check_whole(store: Store, ids: list[int]) -> None:
    """What must hold after every kill."""
    assert store.db.execute("PRAGMA quick_check").fetchone() == ("ok",)
    for id in ids:
        job = store.get(id)
        assert job.state in (QUEUED, INTERRUPTED, COMPLETED), job
        if job.state == COMPLETED:
            assert len(results(store, id)) == 2
        for kept in store.artifacts(id):
            file = artifacts.artifact_path(store.home, kept.hash, kept.suffix)
            assert hashlib.sha256(file.read_bytes()).hexdigest() == kept.hash
        assert store.events(job=id)[0].kind == QUEUED


def test_a_client_that_is_killed_loses_nothing_it_was_told(tmp_path: Path) -> None:
    """It submits and steers in a loop, and is killed five times."""
    draw, told = random.Random(1), 0
    for _ in range(5):
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                own = Store(tmp_path)
                while True:
                    id = own.submit(asked(1))
                    control.pause(own, id)
                    os.write(write, b"x")
            finally:
                os._exit(1)
        os.close(write)
        assert end(pid, draw.uniform(0.05, 0.3))
        told += len(os.read(read, 65536))
        os.close(read)
        store = Store(tmp_path)
        assert store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        jobs = store.queue()
        assert sum(job.held for job in jobs) >= told
        for job in jobs:
            assert [event.kind for event in store.events(job=job.id)][: 1 + job.held] in (
                [QUEUED],
                [QUEUED, "paused"],
            )
        store.close()
    assert told > 5


@pytest.mark.slow
def test_kills(shelf: Shelf, tmp_path: Path) -> None:
    quiet = Store(tmp_path / "quiet")
    ids = [quiet.submit(asked(seed)) for seed in SEEDS]
    began = time.monotonic()
    assert not end(child(quiet.home, kept=shelf))
    lasted = (time.monotonic() - began) / len(SEEDS)
    wanted = {seed: results(quiet, id) for seed, id in zip(SEEDS, ids, strict=True)}

    home, draw = tmp_path / "killed", random.Random(0)
    store = Store(home)
    jobs: dict[int, int] = {}
    kills: Counter[str] = Counter()

    def kill(spot: Spot | None) -> None:
        while len(store.queue()) < 2:
            seed = SEEDS[len(jobs) % len(SEEDS)]
            jobs[store.submit(asked(seed))] = seed
        pid = child(home, spot=spot, kept=shelf)
        if end(pid, None if spot else draw.uniform(0.01, 1.5 * lasted)):
            running = store.history(states=["running"])
            kills[spot.place if spot else running[0].phase if running else "between"] += 1
        assert len(recover(store, 10**6)) <= 1
        check_whole(store, list(jobs))

    for spot in SPOTS:
        kill(spot)
    for _ in range(RANDOM_KILLS):
        kill(None)
    assert kills.total() >= 50, kills
    assert kills["decode"] >= 4 and kills["write"] >= 8 and kills["rename"] >= 5 and kills["sample"] >= 5, (
        kills
    )
    assert not end(child(home, kept=shelf))
    for id, seed in jobs.items():
        assert store.get(id).state == COMPLETED
        assert results(store, id) == wanted[seed]
    artifacts.gc(store)
    files = {path.name for path in (home / "artifacts").rglob("*.*")}
    assert files == {f"{kept.hash}{kept.suffix}" for id in jobs for kept in store.artifacts(id)}
    assert not list((home / "jobs").iterdir())
    print(f"{kills.total()} kills of {len(jobs)} jobs: {dict(kills)}; a job lasts {lasted:.2f} s")
