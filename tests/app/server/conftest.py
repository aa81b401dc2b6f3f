"""A server in this process over a data folder of the test, and one in a process of its own with its runner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sfumato.app.jobs.home import Policy
from sfumato.app.jobs.runner import Runner
from sfumato.app.jobs.store import Store
from sfumato.app.server.application import build_app
from sfumato.app.server.process import Server, configured, listening
from sfumato.app.server.serving import Serving
from sfumato.app.tasks import TASKS
from toy_task import SUM

STEPS = {"model": "tiny-sd", "width": 64, "height": 64, "steps": 2}
"""A small picture of the tiny model, which lies in an open folder."""


@dataclass
class Running:
    url: str
    home: Path
    server: Server
    token: str | None = None

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    @property
    def store(self) -> Store:
        return Store(self.home)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def serve(home: Path, tiny: Path) -> Iterator[Callable[..., Running]]:
    """Starts a server in a thread, on a free port, with the toy task among the others."""
    started: list[tuple[Server, threading.Thread]] = []

    def start(**settings: Any) -> Running:
        token = settings.pop("token", None)
        serving = Serving(**{"port": 0, "runner": False, "allow_path": (str(tiny.parent),), **settings})
        link = listening(serving)
        app = build_app(serving, home, tasks=(*TASKS, SUM))
        server = Server(configured(app, serving), app.state.desk)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [link]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        started.append((server, thread))
        return Running(f"http://127.0.0.1:{link.getsockname()[1]}", home, server, token)

    yield start
    for server, thread in started:
        server.desk.drain()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def running(home: Path) -> Iterator[Callable[..., None]]:
    """Runs jobs in a thread while the test goes on."""
    stop: list[int] = []
    threads: list[threading.Thread] = []

    def run() -> None:
        def work() -> None:
            policy = Policy(progress_seconds=0.02, preview_seconds=0, preview_share=1e9)
            runner = Runner(Store(home), tasks=(*TASKS, SUM), policy=policy, stopping=lambda: bool(stop))
            runner.run(forever=True)

        threads.append(threading.Thread(target=work, daemon=True))
        threads[0].start()

    yield run
    stop.append(1)
    for thread in threads:
        thread.join(30)


@pytest.fixture
def api(serve: Callable[..., Running]) -> Running:
    return serve()


@pytest.fixture
def client(api: Running) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client


def until(test: Callable[[], Any], limit: float = 120.0) -> Any:
    end = time.monotonic() + limit
    while not (found := test()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return found


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    return until


@pytest.fixture
def process(home: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """`sfumato serve` as a user starts it; with its URL."""
    children: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "sfumato.app", "serve", "--port", "0", "--device", "cpu", *arguments]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        children.append(child)
        assert child.stdout
        line = child.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (line, child.stderr.read() if child.stderr else "")
        return child, found[0]

    yield start
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            child.communicate(timeout=120)
