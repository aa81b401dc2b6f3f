"""`sfumato models compile`, and that only what it made is ever opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from sfumato.app.converting import own_store


@pytest.mark.slow
def test_compiled_once_for_later_runs(sfumato: Any, tmp_path: Path) -> None:
    folder = tiny_models.flux(tmp_path / "flux")
    ask = (
        "generate",
        "a cube",
        "-m",
        folder,
        "--size",
        "64x64",
        "--steps",
        "2",
        "--seed",
        "1",
        "--technique",
    )
    said = sfumato(*ask, "compile:backend=ahead")
    assert said.code == 2
    assert "run `sfumato models compile MODEL`" in said.err
    made = sfumato("models", "compile", folder, "--json")
    assert made.code == 0, made.err
    kinds = {one["block"]: one["file"] for one in made.data["kinds"]}
    assert set(kinds) == {"FluxTransformerBlock", "FluxSingleTransformerBlock"}
    assert all(Path(file).parent == own_store().folder for file in kinds.values() if file), made.data
    assert any(kinds.values()), made.data
    assert sfumato(*ask, "compile:backend=ahead", "-o", "cube.png").code == 0
    assert sfumato("replay", "cube.png", "--check").code == 0


def test_a_request_names_no_place(generate: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for store in ("elsewhere", '{"folder":"elsewhere"}'):
        said = generate("-p", "a cube", "--technique", f"compile:backend=ahead,store={store}")
        assert said.code == 2
        assert "store" in said.err
