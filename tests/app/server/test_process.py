"""`sfumato serve` as a process of its own: its runner, what a stop does to jobs and to those who wait, a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from sfumato.app.jobs.ledger import recover
from sfumato.app.jobs.store import Store

LONG = {"prompt": "x", "model": "tiny-sd", "width": 64, "height": 64, "steps": 900, "count": 100}


def runner_of(child: subprocess.Popen[str]) -> int:
    """The process that supervises the runner."""
    return int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0])


@pytest.mark.slow
def test_a_stop_loses_nothing(process, home, tiny, wait_until):
    """SIGTERM: who waits is told, the running job is interrupted with its checkpoint, the next server finishes it."""
    child, url = process("--allow-path", str(tiny.parent))
    said: list[httpx.Response] = []

    def wait() -> None:
        body = {"prompt": "x", "model": "tiny-sd", "size": "64x64", "steps": 900, "n": 100}
        said.append(httpx.post(f"{url}/v1/images/generations", json=body, timeout=120))

    waiter = threading.Thread(target=wait)
    waiter.start()
    store = Store(home)
    wait_until(lambda: store.history())
    later = httpx.post(
        f"{url}/v1/jobs", json={"task": "world", "request": {"width": 32, "height": 32}}
    ).json()["id"]
    assert httpx.get(f"{url}/readyz").json()["ok"] is True
    wait_until(lambda: store.get(1).step > 3)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=90)
    waiter.join(30)
    assert child.returncode == 0 and "Traceback" not in err, err
    assert said[0].status_code == 503 and "job 1 goes on afterwards" in said[0].json()["error"]["message"]
    assert store.get(1).state == "interrupted" and store.get(later).state == "queued"
    assert (store.job_folder(1) / "checkpoint").exists()
    step = store.get(1).step

    child, url = process("--allow-path", str(tiny.parent))
    wait_until(lambda: store.get(1).state == "running" and store.get(1).step > step)
    httpx.post(f"{url}/v1/jobs/1/cancel")
    wait_until(lambda: store.get(later).state == "completed")
    killed = runner_of(child)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
    assert "the runner has ended" in httpx.get(f"{url}/readyz").json()["problems"][0]


@pytest.mark.slow
def test_a_killed_server_takes_its_runner_along(process, home, tiny, wait_until):
    child, url = process("--allow-path", str(tiny.parent))
    httpx.post(f"{url}/v1/jobs", json={"task": "generate", "request": LONG})
    store = Store(home)
    wait_until(lambda: store.get(1).step > 3)
    child.kill()
    child.communicate()
    wait_until(lambda: recover(store, 3) or store.get(1).state == "interrupted")
    assert store.get(1).state == "interrupted"


def test_without_its_packages_it_says_how_to_get_them(tmp_path):
    """As on an installation without the extra."""
    code = """
import sys
from importlib import util
real = util.find_spec
util.find_spec = lambda name, *rest: None if name == "fastapi" else real(name, *rest)
from sfumato.app.cli import main
sys.exit(main(["serve", "--no-runner"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "fastapi is not installed; pip install 'sfumato[serve]'" in done.stderr
    assert done.stderr.count("\n") == 1
