"""One server with its pages, one runner and one browser for all tests of a module."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sfumato.app.jobs.home import Policy
from sfumato.app.jobs.runner import Runner
from sfumato.app.jobs.store import Store
from sfumato.app.server.application import build_app
from sfumato.app.server.process import Server, configured, listening
from sfumato.app.server.serving import Serving
from sfumato.app.tasks import TASKS
from toy_task import SUM

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)
PATIENCE = 60_000
"""Milliseconds: a busy machine may take long."""


@dataclass
class Site:
    url: str
    home: Path
    server: Server

    @property
    def store(self) -> Store:
        return Store(self.home)


def until(test: Callable[[], Any], limit: float = PATIENCE / 1000) -> Any:
    end = time.monotonic() + limit
    while not (found := test()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
    return found


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    return until


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Site]:
    """The server in a thread, with the toy task among the others, and its runner in another."""
    home = tmp_path_factory.mktemp("site") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(home / "uploads"))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        serving = Serving(port=0, runner=False, allow_path=(str(tiny.parent),))
        link = listening(serving)
        app = build_app(serving, home, tasks=(*TASKS, SUM), pages=True)
        server = Server(configured(app, serving), app.state.desk)
        stop: list[int] = []
        policy = Policy(progress_seconds=0.05, preview_seconds=0.2, preview_share=1e9)

        def work() -> None:
            runner = Runner(Store(home), tasks=(*TASKS, SUM), policy=policy, stopping=lambda: bool(stop))
            runner.run(forever=True)

        threads = [threading.Thread(target=server.run, kwargs={"sockets": [link]}, daemon=True)]
        threads.append(threading.Thread(target=work, daemon=True))
        for thread in threads:
            thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Site(f"http://127.0.0.1:{link.getsockname()[1]}", home, server)
        stop.append(1)
        server.desk.drain()
        server.should_exit = True
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "an open page must not keep the server from stopping"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@dataclass
class Visit:
    """An open page, and what it asked for."""

    page: Any
    asked: list[str]
    faults: list[str]

    def tab(self, name: str) -> None:
        """Choose a tab, wherever a narrow page has put it."""
        tab = self.page.get_by_role("tab", name=name, exact=True).first
        if not tab.is_visible():
            self.page.locator(".overflow-menu > button").first.click()
            tab = self.page.locator(".overflow-dropdown button", has_text=name).first
        tab.click()

    def write(self, control: str, text: str) -> None:
        place = self.page.locator(f"#{control} textarea, #{control} input").first
        place.fill(text)
        place.blur()

    def read(self, control: str) -> str:
        return str(self.page.locator(f"#{control} textarea, #{control} input").first.input_value())

    def open(self, title: str) -> None:
        """Open a group of the tab that is seen."""
        self.page.locator("button.label-wrap:visible", has_text=title).first.click()

    def state(self, task: str, *states: str) -> Any:
        """The line about a task's job, once it is in one of these states."""
        any_of = ", ".join(f"#{task}-status [data-state={state}]" for state in states)
        found = self.page.locator(any_of).first
        found.wait_for(timeout=PATIENCE)
        return found


@pytest.fixture
def visit(site: Site, browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens the pages as a new visitor."""
    contexts = []

    def go(width: int = 1280, height: int = 900, **more: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        seen = Visit(page, [], [])
        page.on("request", lambda request: seen.asked.append(request.url))
        page.on("pageerror", lambda error: seen.faults.append(str(error)))
        page.goto(f"{site.url}/")
        page.wait_for_selector("#generate-run")
        page.wait_for_selector("#generate-picture .sf-panel :first-child")
        return seen

    yield go
    for context in contexts:
        context.close()
