"""What the store promises to its readers."""

from __future__ import annotations

import sqlite3
import threading
import time

import pytest
from sfumato.app.jobs import control
from sfumato.app.jobs.ledger import Lost, claim
from sfumato.app.jobs.store import CANCELLED, QUEUED, Store
from sfumato.app.requests import GenerateRequest
from sfumato.pipelines.errors import SfumatoError
from toy_task import SumRequest


def test_ten_thousand_jobs_are_listed_at_once(store):
    store.submit_all([GenerateRequest(prompt=f"a red cube {i}", steps=20) for i in range(10_000)])
    times = []
    for _ in range(5):
        began = time.process_time()  # what it takes of a processor, however busy that is
        jobs = store.queue()
        times.append(time.process_time() - began)
        assert len(jobs) == 10_000
    assert min(times) < 0.1, times
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    began = time.process_time()
    found = store.history(["CUBE", "4242"])
    assert [job.summary for job in found] == ["a red cube 4242"] and time.process_time() - began < 0.1
    began = time.process_time()
    assert claim(Store(store.home), "r", "cpu").id == 1
    assert time.process_time() - began < 0.1
    print(f"list of 10,000: {1000 * min(times):.1f} ms")


def test_a_submitted_job(store, monkeypatch):
    id = store.submit(GenerateRequest(prompt="a  red\ncube", model="still-life"), priority=2)
    job = Store(store.home).get(id)
    assert (job.state, job.task, job.summary, job.priority) == (QUEUED, "generate", "a red cube", 2)
    assert store.request(id)["seed"] is not None, "a seed drawn at each attempt would not resume"
    assert [event.kind for event in store.events()] == [QUEUED]
    with pytest.raises(SfumatoError, match="job: 99 is not there"):
        store.get(99)


def test_pages_and_filters(store):
    ids = store.submit_all([SumRequest(prompt=name) for name in ("Äpfel", "a 50% b", "c")])
    control.cancel(store, ids[2])
    assert [job.id for job in store.history()] == ids[::-1]
    assert [job.id for job in store.history(before=ids[2], limit=1)] == [ids[1]]
    assert [job.id for job in store.history(["äPFEL"])] == [ids[0]]
    assert [job.id for job in store.history(["50%"])] == [ids[1]], "% is no wildcard"
    assert [job.id for job in store.history(states=[CANCELLED])] == [ids[2]]
    assert store.history(task="generate") == []
    assert [job.id for job in store.queue(limit=1, offset=1)] == [ids[1]]
    assert store.counts()[QUEUED] == 2


def test_events_since(store):
    id = store.submit(SumRequest())
    last = store.events()[-1].id
    control.pause(store, id)
    control.resume(store, id)
    assert [event.kind for event in store.events(last)] == ["paused", "resumed"]
    assert store.events(job=id + 1) == []


def test_priority_then_place(store):
    a, b, c = store.submit_all([SumRequest()] * 3)
    (d,) = store.submit_all([SumRequest()], priority=1)

    def order():
        return [job.id for job in store.queue()]

    assert order() == [d, a, b, c]
    control.move(store, c, before=a)
    assert order() == [d, c, a, b]
    control.prioritise(store, b, 2)
    assert order() == [b, d, c, a]
    control.move(store, c)
    assert order() == [b, d, a, c]
    control.move(store, a, before=control.first(store))
    assert order() == [a, b, d, c] and store.get(a).priority == 2
    with pytest.raises(SfumatoError, match="is the job itself"):
        control.move(store, a, before=a)
    taken = [claim(Store(store.home), "r", "cpu").id for _ in range(4)]
    assert taken == [a, b, d, c]
    with pytest.raises(SfumatoError, match="is running; only waiting"):
        control.move(store, a, before=b)


def test_a_place_is_found_however_often_jobs_are_moved(store):
    a, b, c = store.submit_all([SumRequest()] * 3)
    for _ in range(80):
        b, c = c, b
        control.move(store, c, before=b)
        assert [job.id for job in store.queue()] == [a, c, b]


def test_two_runners_never_take_the_same_job(store):
    store.submit_all([SumRequest()] * 60)
    taken: list[int] = []

    def take(name: str) -> None:
        own = Store(store.home)
        while (found := claim(own, name, name)) is not None:
            taken.append(found.id)

    threads = [threading.Thread(target=take, args=(f"r{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 61))


def test_jobs_of_other_devices_are_left(store):
    store.submit_all([SumRequest(device="cuda"), SumRequest(device="cpu")])
    assert claim(Store(store.home), "r", "cpu", ("cuda", "auto")).id == 2
    assert claim(Store(store.home), "r", "cpu", ("cuda", "auto")) is None


def test_a_job_that_was_taken_away_can_no_longer_be_written(store):
    store.submit(SumRequest())
    old = claim(Store(store.home), "old", "cpu")
    with store.change() as db:
        db.execute("UPDATE jobs SET runner = 'new'")
    assert old.wanted() == "lost"
    with pytest.raises(Lost):
        old.progress(1, 2, 0)
    with pytest.raises(Lost):
        old.fail("x")
    assert store.get(1).state == "running" and store.events()[-1].kind == "running"


def test_a_change_that_fails_leaves_nothing(store):
    id = store.submit(SumRequest())
    with pytest.raises(sqlite3.IntegrityError), store.change() as db:
        store.append(id, "half")
        db.execute("UPDATE jobs SET state = 'asleep'")
    assert [event.kind for event in store.events()] == [QUEUED]


def test_readers_do_not_wait_for_a_writer(store):
    store.submit(SumRequest())
    reader = Store(store.home)
    with store.change():
        began = time.perf_counter()
        assert reader.get(1).state == QUEUED and len(reader.queue()) == 1
        assert time.perf_counter() - began < 0.5


def test_a_strange_database_is_refused(tmp_path):
    (tmp_path / "jobs.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(SfumatoError, match="can't be opened"):
        Store(tmp_path)
    newer = Store(tmp_path / "newer")
    newer.db.execute("PRAGMA user_version = 99")
    with pytest.raises(SfumatoError, match="made by a newer sfumato"):
        Store(tmp_path / "newer")
