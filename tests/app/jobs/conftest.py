"""A store and runners in a folder of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sfumato.app.jobs.home import Policy
from sfumato.app.jobs.runner import Runner
from sfumato.app.jobs.store import Store
from sfumato.app.tasks import TASKS, Task
from toy_task import SUM


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A client's view; the runner has a connection of its own."""
    return Store(tmp_path / "home")


@pytest.fixture
def runner(store: Store) -> Callable[..., Runner]:
    """A runner that knows the toy task, or others."""

    def make(*tasks: Task, policy: Policy | None = None) -> Runner:
        return Runner(
            Store(store.home),
            tasks=(*(tasks or (SUM,)), *TASKS),
            policy=policy
            or Policy(checkpoint_seconds=0, progress_seconds=0, preview_seconds=0, preview_share=1e9),
        )

    return make
