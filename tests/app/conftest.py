"""A tiny checkpoint with random weights, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
from sfumato.app import cli


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder that samples 64x64 in milliseconds."""
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(autouse=True)
def own_folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Every test runs in a folder of its own, without the user's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("SFUMATO_HOME", raising=False)
    return tmp_path


@pytest.fixture
def sfumato(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line; nothing that a user does may end in a traceback."""

    def run(*arguments: str | Path) -> Said:
        code = cli.main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def generate(sfumato: Callable[..., Said], tiny: Path) -> Callable[..., Said]:
    """`sfumato generate` with the tiny model, small and fast."""

    def run(*arguments: str | Path) -> Said:
        return sfumato("generate", "-m", tiny, "--size", "64x64", "--steps", "2", *arguments)

    return run
