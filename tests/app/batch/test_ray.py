"""On a Ray cluster of two nodes: the pictures of the local run, though workers are killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from batches import lines, pictures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]

STORE = 80 * 2**20
WAIT = 300.0
"""Most seconds for anything here, on a machine that is busy with other tests."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes, each of one processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else workers wait for all other tests
        from ray.cluster_utils import Cluster

        found, node = Cluster(), {"num_cpus": 1, "object_store_memory": STORE}
        patient(lambda: found.add_node(**node, include_dashboard=False))
        patient(lambda: found.add_node(**node))
        found.wait_for_nodes(timeout=WAIT)
        yield found.address
        found.shutdown()


def patient(start: Callable[[], object]) -> None:
    """A node gets 30 s to start, which is little beside other tests; the last time its error is told."""
    for _ in range(4):
        with suppress(Exception):
            start()
            return
    start()


def soon(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def working(name: str) -> list[psutil.Process]:
    """Processes of our cluster that run this method of an actor now; Ray writes it into their titles."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_batch_gives_the_pictures_of_the_local_run_though_a_worker_is_killed(cluster, rows, sfumato):
    asked = [{"seed": seed, "prompt": f"a cube {seed % 3}", "steps": 40} for seed in range(24)]
    options = ("batch", "run", rows(*asked), "--per-batch", "2", "--json", "-o")
    local = sfumato(*options, "here")
    assert local.code == 0, local.err
    killed: list[int] = []

    def kill() -> None:
        soon(lambda: Path("made/manifest.jsonl").exists())
        victim = soon(lambda: working("ray::Remote.run"))[0]
        os.kill(victim.pid, signal.SIGKILL)
        killed.append(victim.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    said = sfumato(*options, "made", "--engine", "ray", "--address", cluster)
    killer.join(1)
    assert killed and said.code == 0, said.err
    assert (said.data["made"], said.data["failed"]) == (24, 0)
    assert "is lost" in said.err and "its work goes to another" in said.err
    assert pictures("made") == pictures("here")
    keys = {"row", "id", "image", "state", "files", "seed", "group", "together", "request"}
    assert [{k: line[k] for k in keys} for line in sorted(lines("made"), key=lambda line: line["row"])] == [
        {k: line[k] for k in keys} for line in sorted(lines("here"), key=lambda line: line["row"])
    ]
    assert sfumato(*options, "made", "--engine", "ray", "--address", cluster).data["done_before"] == 24


def test_bad_rows_are_refused_by_a_worker_too(cluster, rows, sfumato):
    said = sfumato(
        "batch", "run", rows({"seed": 1}, {"size": "63x64"}), "--engine", "ray", "--address", cluster
    )
    assert said.code == 2 and "row 2: " in said.err and not Path("out").exists()


def test_the_api_is_served_by_replicas_and_a_dead_one_is_replaced(cluster, tiny, generate, tmp_path):
    import httpx

    environment = {**os.environ, "SFUMATO_HOME": str(tmp_path / "home"), "SFUMATO_CHECKPOINT_SECONDS": "0"}
    command = [sys.executable, "-m", "sfumato.app", "serve", "--port", "0", "--json", "--engine", "ray"]
    command += ["--address", cluster, "--allow-path", str(tiny.parent)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = ""
            while not said.rstrip().endswith("}"):
                said += server.stdout.readline()
            with httpx.Client(base_url=json.loads(said)["url"], timeout=WAIT) as client:
                check_api(client, tiny, generate)
        finally:
            server.terminate()
            server.wait(WAIT)
    assert server.returncode == 0


def check_api(client: Any, tiny: Path, generate: Callable[..., Any]) -> None:
    def submit(seed: int, steps: int) -> int:
        request = {"prompt": "a cube", "model": tiny.name, "size": "64x64", "steps": steps, "seed": seed}
        answer = client.post("/v1/jobs", json={"task": "generate", "request": request})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def job(id: int) -> dict[str, Any]:
        return dict(client.get(f"/v1/jobs/{id}").json())

    ids = [submit(seed, 60) for seed in range(4)]
    long = submit(9, 500)
    victim = soon(lambda: working("ServeReplica") if job(ids[0])["step"] > 5 else None)[0]
    os.kill(victim.pid, signal.SIGKILL)
    for seed, id in enumerate(ids):
        soon(lambda id=id: job(id)["state"] in ("completed", "failed"))
        assert job(id)["state"] == "completed", job(id)
        assert generate("a cube", "--steps", "60", "--seed", str(seed), "-o", "one.png").code == 0
        (kept,) = [kept for kept in job(id)["artifacts"] if kept["media"] == "image/png"]
        assert client.get(f"/v1/artifacts/{kept['id']}").content == Path("one.png").read_bytes()
    soon(lambda: job(long)["step"] > 0 or job(long)["state"] == "completed")
    if client.post(f"/v1/jobs/{long}/cancel").status_code == 200:  # else it was quicker than we
        soon(lambda: job(long)["state"] == "cancelled")


def test_without_ray_a_sentence_says_how_to_get_it(rows, sfumato, monkeypatch):
    monkeypatch.setattr("sfumato.app.batch.ray_engine.find_spec", lambda name: None)
    said = sfumato("batch", "run", rows({"seed": 1}), "--engine", "ray")
    assert said.code == 1 and "pip install 'sfumato[batch]'" in said.err


def test_no_cluster_at_the_address(rows, sfumato):
    said = sfumato("batch", "run", rows({"seed": 1}), "--engine", "ray", "--address", "localhost:1")
    assert said.code == 1 and "no Ray cluster answers there" in said.err
