"""Room: what is deleted and what is not, the cap, a collector beside a runner."""

from __future__ import annotations

import threading
import time

import pytest
from sfumato.app.faults import Failure
from sfumato.app.jobs import artifacts, control
from sfumato.app.jobs.home import Policy, data_folder, policy, size_of, told_size
from sfumato.app.jobs.store import COMPLETED, QUEUED, Store
from sfumato.app.tasks import Task
from sfumato.app.work import Artifact, Outcome, Work
from sfumato.pipelines.errors import SfumatoError
from toy_task import SumRequest


def big(request: SumRequest, work: Work) -> Outcome:
    """A kilobyte that depends on the seed, and one that does not."""
    for name, byte in (("own.bin", request.seed), ("same.bin", 0)):
        work.keep(
            Artifact(name, "application/octet-stream", {}),
            lambda file, byte=byte: file.write(bytes([byte]) * 1000),
        )
    return Outcome(request)


def files(store: Store) -> int:
    return len([path for path in (store.home / "artifacts").rglob("*.bin") if path.is_file()])


@pytest.fixture
def full(store, runner) -> Store:
    for seed in (1, 2, 3):
        store.submit(SumRequest(seed=seed))
    assert runner(Task(SumRequest, big)).run() == {COMPLETED: 3}
    return store


def test_only_what_nobody_refers_to_goes(full):
    assert files(full) == 4
    stray = full.home / "artifacts" / "ab" / f"{'ab' * 32}.png"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"12345")
    small = artifacts.thumbnail_path(full.home, "ab" * 32)
    small.parent.mkdir(parents=True)
    small.touch()
    gone = full.job_folder(99)
    gone.mkdir(parents=True)
    (gone / "checkpoint").write_bytes(b"123")
    freed = artifacts.gc(full)
    assert (freed.files, freed.bytes, freed.dropped) == (2, 8, ())
    assert (
        files(full) == 4 and not stray.exists() and not small.exists() and not (gone / "checkpoint").exists()
    )
    assert artifacts.gc(full).files == 0 and not gone.exists()


def test_the_oldest_results_go_first_and_shared_bytes_stay(full):
    before = artifacts.usage(full)
    freed = artifacts.gc(full, to=before - 500)
    assert freed.dropped == (1,) and files(full) == 3
    assert artifacts.usage(full) <= before - 500
    assert full.artifacts(1) == [] and len(full.artifacts(2)) == 3
    assert full.events(job=1)[-1].kind == "dropped" and full.get(1).state == COMPLETED
    artifacts.gc(full, to=0)
    assert files(full) == 0 and artifacts.usage(full) == 0


def test_checkpoints_of_jobs_that_can_be_retried_stay_for_a_week(store):
    id = store.submit(SumRequest())
    control.cancel(store, id)
    folder = store.job_folder(id)
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_text("{}")
    (folder / "new-half").write_text("{}")
    artifacts.gc(store)
    assert (folder / "checkpoint").exists(), "cancelled just now"
    artifacts.gc(store, now=time.time() + 8 * 86400)
    assert not list(folder.glob("*"))
    artifacts.gc(store)
    assert not folder.exists()
    waiting = store.submit(SumRequest())
    folder = store.job_folder(waiting)
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_text("{}")
    (folder / ".new-half.part").write_text("{}")
    artifacts.gc(store, now=time.time() + 8 * 86400)
    assert [path.name for path in folder.iterdir()] == ["checkpoint"]


def test_beyond_the_cap_no_job_is_begun(full, runner):
    id = full.submit(SumRequest(seed=4))
    capped = runner(Task(SumRequest, big), policy=Policy(cap=2000))
    with pytest.raises(Failure, match=r"the cap is 2\.0 kB: delete the oldest with `sfumato jobs gc --to"):
        capped.run()
    assert full.get(id).state == QUEUED
    artifacts.gc(full, to=1900)
    assert capped.run() == {COMPLETED: 1}


def test_a_collector_never_takes_what_a_runner_shelves(store, runner):
    ids = [store.submit(SumRequest(seed=seed)) for seed in range(30)]
    stop: list[int] = []
    rounds: list[int] = []

    def collect() -> None:
        own = Store(store.home)
        while not stop:
            artifacts.gc(own)
            rounds.append(1)
        rounds.append(-1)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        assert runner(Task(SumRequest, big)).run() == {COMPLETED: 30}
    finally:
        stop.append(1)
        thread.join()
    assert len(rounds) > 3 and rounds[-1] == -1, "the collector fell over"
    for id in ids:
        for kept in store.artifacts(id):
            assert artifacts.artifact_path(store.home, kept.hash, kept.suffix).is_file()


def test_sizes():
    assert size_of("20GB", "to") == 20 * 10**9 and size_of("1.5 k", "to") == 1500 and size_of("7", "to") == 7
    assert told_size(20 * 10**9) == "20.0 GB" and told_size(7) == "7 bytes"
    with pytest.raises(SfumatoError, match="write it as in 20GB"):
        size_of("much", "to")


def test_settings(tmp_path):
    assert data_folder({"SFUMATO_HOME": str(tmp_path)}) == tmp_path
    assert data_folder({}).name == "sfumato"
    found = policy({"SFUMATO_DISK_CAP": "2GB", "SFUMATO_CHECKPOINT_SECONDS": "2.5"})
    assert (found.cap, found.checkpoint_seconds) == (2 * 10**9, 2.5)
    with pytest.raises(SfumatoError, match="SFUMATO_CHECKPOINT_SECONDS"):
        policy({"SFUMATO_CHECKPOINT_SECONDS": "soon"})
