"""`sfumato jobs ...` as a user sees it, the runner in processes of its own included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sfumato.app.jobs.home import data_folder
from sfumato.app.jobs.store import Store


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def submit(sfumato, tiny):
    def run(*arguments: str) -> int:
        said = sfumato(
            "jobs", "submit", "generate", "a cube", "-m", tiny, "--size", "64", "--steps", "2", *arguments
        )
        assert said.code == 0 and said.err == "", said
        return int(said.out)

    return run


def test_submit_list_show_search(sfumato, submit):
    ids = [submit(), submit("--priority", "1"), submit("--paused", "-n", "metal")]
    data = sfumato("jobs", "list", "--json").data
    assert [job["id"] for job in data["jobs"]] == [ids[1], ids[0], ids[2]]
    assert data["counts"]["queued"] == 3 and data["jobs"][2]["held"] is True
    assert sfumato("jobs", "list").out.count("a cube") == 3
    shown = sfumato("jobs", "show", ids[0], "--json").data
    assert shown["request"]["steps"] == 2 and shown["events"][0]["kind"] == "queued"
    assert "queued" in sfumato("jobs", "show", ids[0]).out
    assert [job["id"] for job in sfumato("jobs", "search", "METAL", "cube", "--json").data] == [ids[2]]
    assert sfumato("jobs", "search", "nothing", "such").out == "nothing found\n"
    assert [j["id"] for j in sfumato("jobs", "list", "--state", "queued", "--json").data["jobs"]] == ids[::-1]


@pytest.mark.parametrize(
    ("technique", "told"),
    [
        ("ulysses", "'ulysses' is not known"),
        ("cfg:skale=3", "'cfg:skale' is no setting"),
        ("ptq4dm", "which only a run of the model tells: it is a method of `sfumato models quantize`"),
        ("mixdq", "which only a run of the model tells: it is a method of `sfumato models quantize`"),
    ],
)
def test_techniques_that_nobody_can_run_are_refused_as_they_are_submitted(sfumato, technique, told):
    for door in (("jobs", "submit", "generate"), ("generate",)):
        said = sfumato(*door, "x", "-t", technique)
        assert said.code == 2 and told in said.err and said.err.count("\n") == 1, said
    assert sfumato("jobs", "list", "--json").data["jobs"] == []


def test_steering(sfumato, submit):
    a, b = submit(), submit()
    assert sfumato("jobs", "pause", a).out == f"job {a}: paused\n"
    assert sfumato("jobs", "resume", a).out == f"job {a}: queued\n"
    sfumato("jobs", "move", b, "--first")
    assert [job["id"] for job in sfumato("jobs", "list", "--json").data["jobs"]] == [b, a]
    sfumato("jobs", "move", b, "--last")
    sfumato("jobs", "move", b, "--before", a)
    sfumato("jobs", "move", a, "--priority", "5", "--json")
    assert [job["id"] for job in sfumato("jobs", "list", "--json").data["jobs"]] == [a, b]
    assert sfumato("jobs", "cancel", a).out == f"job {a}: cancelled\n"
    assert sfumato("jobs", "retry", a).out == f"job {a}: queued\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["submit", "generate"], "prompt: None is needed"),
        (["submit", "generate", "x", "--steps", "0"], "steps: '0' must be at least 1"),
        (["submit", "generate", "x", "-m", "still-lief"], ""),
        (["submit", "sculpt", "x"], "sculpt"),
        (["show", "7"], "job: 7 is not there"),
        (["cancel", "7"], "job: 7 is not there"),
        (["move", "1"], "needs one of --before, --first, --last and --priority"),
        (["list", "--state", "asleep"], "state: 'asleep' is not known"),
        (["gc", "--to", "much"], "is no size"),
        (["resume", "1"], "job: 1 is not there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(sfumato, arguments, sentence):
    said = sfumato("jobs", *arguments)
    if sentence:
        assert said.code == 2 and sentence in said.err and len(said.err.strip().splitlines()) == 1, said


def test_run_in_this_process(sfumato, submit):
    good, bad = submit("--seed", "4"), submit("-m", "/gone")
    said = sfumato("jobs", "run", "--alone", "--device", "cpu", "--json")
    assert said.code == 1 and said.data == {"device": "cpu", "ended": {"completed": 1, "failed": 1}}
    shown = sfumato("jobs", "show", good, "--json").data
    picture = next(kept for kept in shown["artifacts"] if kept["name"] == "0000.png")
    assert sfumato("replay", picture["path"], "--check").code == 0
    assert "/gone" in sfumato("jobs", "show", bad).out
    said = sfumato("jobs", "gc", "--to", "0", "--json")
    assert said.data["dropped"] == [good] and said.data["left"] == 0
    assert sfumato("jobs", "run", "--alone").out == "nothing was waiting\n"
    assert sfumato("jobs", "run", "--alone", "--device", "cuda:7").code == 1


def test_a_broken_database_is_one_sentence(sfumato, submit, home):
    submit()
    file = home / "jobs.sqlite"
    Store(home).db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = file.read_bytes()
    file.write_bytes(whole[:8192] + bytes(len(whole) - 8192))
    said = sfumato("jobs", "list")
    assert said.code in (1, 2) and len(said.err.strip().splitlines()) == 1, said


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sfumato.app", "jobs", "run", "--device", "cpu", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(test, limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not test():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.slow
def test_processes(sfumato, submit, home):
    """The runner is killed and started again; its supervisor is killed and takes the runner along; Ctrl+C is soft."""
    id = submit("--steps", "900")
    store = Store(data_folder())
    first = started()
    until(lambda: store.get(id).step > 3)
    (worker,) = [int(pid) for pid in children(first.pid)]
    os.kill(worker, signal.SIGKILL)
    until(lambda: store.get(id).attempts == 2)
    until(lambda: store.get(id).phase == "sample")
    first.kill()
    first.communicate()
    until(lambda: store.get(id).state == "interrupted")
    assert (store.job_folder(id) / "checkpoint").exists() and not store.get(id).held
    second = started()
    until(lambda: store.get(id).attempts == 3 and store.get(id).phase == "sample")
    second.send_signal(signal.SIGINT)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 130 and "Traceback" not in err and out == "1 interrupted\n"
    assert json.loads(sfumato("jobs", "list", "--json").out)["counts"]["interrupted"] == 1


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_finished_jobs_are_deleted(sfumato, tmp_path):
    ids = [sfumato("jobs", "submit", "world", "x", "--size", "32", "--json").data["id"] for _ in range(2)]
    said = sfumato("jobs", "delete", str(ids[0]))
    assert said.code == 2 and "is queued; cancel it first" in said.err
    for id in ids:
        sfumato("jobs", "cancel", str(id))
    assert sfumato("jobs", "delete", *map(str, ids), "--json").data == [{"id": id, "files": 0} for id in ids]
    assert sfumato("jobs", "list", "--json").data["jobs"] == []
    assert "is not there" in sfumato("jobs", "delete", str(ids[0])).err
