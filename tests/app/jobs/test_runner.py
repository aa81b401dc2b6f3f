"""The runner: a task from its request and function alone, stops in every phase, resumes, strikes, faults."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from killing import child, end
from sfumato.app.jobs import artifacts, control
from sfumato.app.jobs.home import Policy
from sfumato.app.jobs.ledger import claim, recover
from sfumato.app.jobs.runner import Runner
from sfumato.app.jobs.store import CANCELLED, COMPLETED, FAILED, INTERRUPTED, QUEUED, RUNNING, Store
from sfumato.app.requests import WorldRequest
from sfumato.app.tasks import Task
from sfumato.app.work import Artifact, Outcome, Work
from toy_task import SUM, SumRequest, add_up

PHASES = ("load", "encode", "sample", "decode", "write")


def texts(store: Store, id: int) -> dict[str, bytes]:
    return {
        kept.name: artifacts.artifact_path(store.home, kept.hash, kept.suffix).read_bytes()
        for kept in store.artifacts(id)
    }


class Hooked:
    """The toy task with something happening as a phase begins."""

    def __init__(self, hook: Callable[[str], None]) -> None:
        self.hook = hook
        self.calls: list[str] = []

    def __call__(self, request: SumRequest, work: Work) -> Outcome:
        phase = work.phase

        def hooked(name: str) -> None:
            phase(name)
            self.calls.append(name)
            self.hook(name)

        work.phase = hooked
        return add_up(request, work)


def test_a_task_is_its_request_and_its_function(store, runner):
    id = store.submit(SumRequest(prompt="mine", seed=7))
    assert runner().run() == {COMPLETED: 1}
    job, found = store.get(id), texts(store, id)
    assert (job.state, job.step, job.steps, job.attempts) == (COMPLETED, 5, 5, 1)
    assert set(found) == {"decode.txt", "write.txt", "manifest.json"}
    manifest = json.loads(found["manifest.json"])
    assert manifest["request"] == store.request(id) and manifest["asked"]["seed"] == 7
    assert set(PHASES) <= set(manifest["seconds"]) and manifest["peak_bytes"]["ram"] > 10**6
    assert {row["name"] for row in manifest["artifacts"]} == {"decode.txt", "write.txt"}
    assert {"sfumato", "torch", "python"} <= set(manifest["versions"])
    assert not store.job_folder(id).exists()


def test_a_task_has_its_command_too(tmp_path, capsys):
    """Made from the request, as for every task."""
    import typer
    from sfumato.app.cli import with_console
    from sfumato.app.options import request_command

    app = typer.Typer()
    app.command("sum")(with_console(request_command(SumRequest)(SUM.command)))
    typer.main.get_command(app).main(
        ["--seed", "7", "--steps", "5", "-o", "sums/"], standalone_mode=False, prog_name="x"
    )
    assert capsys.readouterr().out.split() == ["sums/decode.txt", "sums/write.txt"]


def test_the_same_bytes_are_one_file(store, runner):
    ids = [store.submit(SumRequest(seed=7)) for _ in range(2)]
    runner().run()
    first, second = (store.artifacts(id) for id in ids)
    assert store.artifact(first[0].hash).name == "decode.txt"
    assert [kept.hash for kept in first[:1]] == [kept.hash for kept in second[:1]]
    assert len(list((store.home / "artifacts").glob("*/*.txt"))) == 2


def test_the_world_is_a_job(store, runner):
    id = store.submit(WorldRequest(seed=3, width=64, height=48, maps=("depth",)))
    assert runner().run() == {COMPLETED: 1}
    assert {"depth.png", "scene.json"} <= set(texts(store, id))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("way", ["cancel", "pause"])
def test_a_stop_lands_in_every_phase(store, runner, phase, way):
    """No call comes after the one in hand; what comes out in the end is what an undisturbed run gives."""
    request = SumRequest(seed=3, steps=4)
    whole, id = store.submit(request), store.submit(request)
    control.pause(store, id)
    runner().run()
    control.resume(store, id)
    asked = {"cancel": control.cancel, "pause": control.pause}[way]
    hooked = Hooked(lambda name: asked(store, id) if name == phase and store.get(id).wanted == "" else None)
    runner(Task(SumRequest, hooked)).run()
    job = store.get(id)
    assert hooked.calls[-1] == phase
    assert (job.state, job.held) == ((CANCELLED, 0) if way == "cancel" else (INTERRUPTED, 1))
    assert runner().run() == {}, "neither is taken by itself"
    {"cancel": control.retry, "pause": control.resume}[way](store, id)
    assert runner().run() == {COMPLETED: 1}
    assert {k: v for k, v in texts(store, id).items() if k != "manifest.json"} == {
        k: v for k, v in texts(store, whole).items() if k != "manifest.json"
    }


def test_a_stop_within_sampling_writes_a_checkpoint_and_goes_on_from_it(store, runner):
    id = store.submit(SumRequest(seed=3, steps=10**9))
    asker = threading.Timer(0.3, lambda: control.pause(Store(store.home), id))
    asker.start()
    began = time.monotonic()
    runner(policy=Policy(progress_seconds=0.05)).run()
    assert time.monotonic() - began < 5
    asker.join()
    saved = json.loads((store.job_folder(id) / "checkpoint").read_text())
    assert saved["step"] > 100 and store.get(id).held
    assert store.events(job=id)[-2].data["step"] == saved["step"]


def test_a_runner_that_stops_leaves_the_job_to_the_next(store, runner):
    id = store.submit(SumRequest(seed=3))
    stop: list[int] = []
    first = runner(Task(SumRequest, Hooked(lambda name: stop.append(1) if name == "decode" else None)))
    replace(first, stopping=lambda: bool(stop)).run()
    job = store.get(id)
    assert (job.state, job.held, job.step) == (INTERRUPTED, 0, 5)
    assert runner().run() == {COMPLETED: 1} and store.get(id).attempts == 2


def test_finished_results_are_not_made_again(store, runner):
    id = store.submit(SumRequest(seed=3))
    runner(Task(SumRequest, Hooked(lambda name: control.pause(store, id) if name == "write" else None))).run()
    assert [kept.name for kept in store.artifacts(id)] == ["decode.txt"]
    control.resume(store, id)
    runner().run()
    assert [e.data["name"] for e in store.events(job=id) if e.kind == "kept"] == ["decode.txt", "write.txt"]


BAD = {
    "a sentence of ours": (lambda: _raise("size: 7 must be a multiple of 8"), "size: 7 must be a multiple"),
    "a defect": (lambda: {}["missing"], "a defect of sfumato: KeyError: 'missing'"),
    "no memory": (lambda: _raise_memory(), "out of memory: ask for"),
}


def _raise(text: str) -> None:
    from sfumato.pipelines.errors import SfumatoError

    raise SfumatoError(text)


def _raise_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_one_sentence_and_the_next_job_runs(store, runner, name):
    fault, sentence = BAD[name]

    def faulty(request: SumRequest, work: Work) -> Outcome:
        if request.prompt == "bad":
            fault()
        return add_up(request, work)

    bad, good = store.submit(SumRequest(prompt="bad")), store.submit(SumRequest())
    assert runner(Task(SumRequest, faulty)).run() == {FAILED: 1, COMPLETED: 1}
    job = store.get(bad)
    assert job.error.startswith(sentence) and "Traceback" not in job.error and "\n" not in job.error
    assert store.get(good).state == COMPLETED
    assert store.history(["memory" if name == "no memory" else sentence[:6]], states=[FAILED])[0].id == bad
    control.retry(store, bad)
    assert store.get(bad).error == ""
    if name == "a defect":
        assert "KeyError" in (store.job_folder(bad) / "defect.txt").read_text()


def test_an_unknown_task_or_field_fails_with_a_sentence(store, runner):
    ids = store.submit_all([SumRequest(), SumRequest()])
    with store.change() as db:
        db.execute("UPDATE jobs SET task = 'sculpt' WHERE id = ?", (ids[0],))
        db.execute("UPDATE requests SET request = '{\"steps\": 0}' WHERE job = ?", (ids[1],))
    assert runner().run() == {FAILED: 2}
    assert store.get(ids[0]).error.startswith("there is no task 'sculpt'")
    assert store.get(ids[1]).error == "steps: 0 must be at least 1"


def test_a_pause_on_a_full_disk_keeps_the_earlier_checkpoint(store, runner):
    """The job is interrupted all the same, and says what went wrong."""
    id = store.submit(SumRequest(seed=1, steps=4))

    def pausing(request: SumRequest, work: Work) -> Outcome:
        checkpoint = work.checkpoint

        def full(save, step, steps) -> None:
            checkpoint(save, step, steps)
            if step == 2:
                control.pause(store, id)
                work._last = (lambda path: _raise_full(path), step, steps)

        work.checkpoint = full
        return add_up(request, work)

    runner(Task(SumRequest, pausing)).run()
    assert (store.get(id).state, store.get(id).held) == (INTERRUPTED, 1)
    assert "No space left" in next(e.data["text"] for e in store.events(job=id) if e.kind == "note")
    assert json.loads((store.job_folder(id) / "checkpoint").read_text())["step"] == 2


def _raise_full(path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


def test_a_failure_of_a_job_that_was_taken_away_is_not_written(store, runner):
    id = store.submit(SumRequest())

    def lose(request: SumRequest, work: Work) -> Outcome:
        with store.change() as db:
            db.execute("UPDATE jobs SET runner = 'another'")
        raise KeyError("x")

    assert runner(Task(SumRequest, lose)).run() == {"lost": 1}
    assert store.get(id).state == RUNNING


def crash(name: str) -> None:
    if name == "sample":
        os.kill(os.getpid(), signal.SIGKILL)


def test_three_deaths_without_progress_are_a_failure(store, runner):
    id = store.submit(SumRequest())
    for _ in range(3):
        assert store.get(id).state in (QUEUED, INTERRUPTED)
        assert end(child(store.home, tasks=[Task(SumRequest, Hooked(crash))]))
        assert store.get(id).state == RUNNING
        recover(store, 3)
    job = store.get(id)
    assert job.state == FAILED
    assert job.error.startswith("the runner's process died 3 times in the phase 'sample' without getting any")
    control.retry(store, id)
    assert runner().run() == {COMPLETED: 1}


def test_deaths_with_progress_are_none(store, runner):
    """Each attempt gets one step further before it dies."""
    store.submit(SumRequest(seed=2, steps=4))

    def dying(request: SumRequest, work: Work) -> Outcome:
        save = work.write_checkpoint

        def once() -> None:
            save()
            os.kill(os.getpid(), signal.SIGKILL)

        work.write_checkpoint = once
        return add_up(request, work)

    for _ in range(4):
        assert end(child(store.home, tasks=[Task(SumRequest, dying)]))
        (job,) = recover(store, 3)
        assert job.state == INTERRUPTED
    assert runner().run() == {COMPLETED: 1}


def test_a_dead_runner_whose_job_was_to_be_cancelled(store):
    id = store.submit(SumRequest())
    assert end(child(store.home, tasks=[Task(SumRequest, Hooked(crash))]))
    control.cancel(store, id)
    recover(store, 3)
    assert store.get(id).state == CANCELLED


def test_a_living_runner_is_not_taken_for_dead(store, runner):
    """One device, one runner; whoever looks after jobs leaves those of a living one alone."""
    seen: list[object] = []

    def look(name: str) -> None:
        if name == "sample":
            seen.append(recover(Store(store.home), 1))
            pid = os.fork()
            if pid == 0:
                try:
                    Runner(Store(store.home)).run()
                except RuntimeError as error:
                    os._exit(7 if "another runner works on cpu" in str(error) else 1)
                os._exit(0)
            seen.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    store.submit(SumRequest())
    assert runner(Task(SumRequest, Hooked(look))).run() == {COMPLETED: 1}
    assert seen == [[], 7]


def test_relative_paths_are_those_of_the_client(store, runner, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "text").write_text("found")

    def read(request: SumRequest, work: Work) -> Outcome:
        work.keep(Artifact("copy.txt", "text/plain", {}), lambda file: file.write(Path("text").read_bytes()))
        return Outcome(request)

    id = store.submit(SumRequest(), folder=there)
    before = Path.cwd()
    assert runner(Task(SumRequest, read)).run() == {COMPLETED: 1}
    assert texts(store, id)["copy.txt"] == b"found" and Path.cwd() == before


def test_a_waiting_runner_sees_a_new_job_at_once(store, runner):
    stop: list[int] = []
    waiting = replace(runner(), stopping=lambda: bool(stop))
    thread = threading.Thread(target=lambda: replace(waiting, store=Store(store.home)).run(forever=True))
    thread.start()
    time.sleep(0.3)
    began = time.monotonic()
    id = store.submit(SumRequest(steps=1))
    while store.get(id).state != COMPLETED and time.monotonic() - began < 10:
        time.sleep(0.005)
    waited = store.get(id).started - store.get(id).created
    stop.append(1)
    thread.join()
    assert waited < 0.5 and "sqlite3" in sys.modules


def test_a_claim_without_work_is_harmless(store):
    assert claim(Store(store.home), "r", "cpu") is None
    assert store.events() == []
