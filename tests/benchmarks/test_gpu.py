"""The benchmark of networks on a GPU: it runs on tiny ones here, and the real ones fit into the memory of one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 139 * 2**30
"""Bytes of an H200."""
SLOW = pytest.mark.slow


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


@pytest.mark.parametrize("name", ["flux", *(pytest.param(n, marks=SLOW) for n in ("sdxl", "dit", "sd15"))])
def test_it_runs(name: str, tmp_path: Path) -> None:
    asked = [name, "--device", "cpu", "--small", "--backend", "eager", "--repeats", "1"]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *asked, "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / f"gpu-{name}.json").read_text(encoding="utf-8"))
    assert found["machine"]["failed"] == {}
    rows = {one["what"]: one["median"] for one in found["rows"]}
    assert rows["relative error, exact"] < 2
    assert 0 < rows["relative error, balanced"] < 15
    if name in ("flux", "dit"):
        assert rows["weights, balanced"] < 0.95 * rows["weights, plain"]
        assert 0 < rows["relative error, small"] < 40
    assert any(what.startswith("share of balanced: ") for what in rows)


def test_time_that_runs_out_is_said(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = bench.arguments().parse_args(["flux", "--device", "cpu", "--small", "--minutes", "0", "--dry"])
    made = bench.prepare_all(bench.cases(small=True)["flux"], "flux", given, until=0.0)
    assert list(made.runs) == ["plain"]
    assert set(made.failed.values()) == {"no time was left"} and "balanced" in made.failed


def test_what_cannot_be_prepared_is_named(bench: Any) -> None:
    asked = ["flux", "--device", "cpu", "--small", "--backend", "nonsense", "--dry"]
    given = bench.arguments().parse_args(asked)
    made = bench.prepare_all(bench.cases(small=True)["flux"], "flux", given, until=float("inf"))
    assert list(made.runs) == ["plain"]
    assert "backend must be one of" in made.failed["exact"]


@pytest.mark.slow
def test_the_largest_network_fits_with_all_its_candidates(bench: Any) -> None:
    """On meta: weights of all that are held at once, one more in half precision as the last is made, and a call."""
    from sfumato.pipelines.rehearsal import rehearse

    case, half = bench.cases()["flux"], torch.bfloat16
    held, plain = 0, 0
    for candidate in bench.candidates("flux", bench.HOPPER):
        if candidate.of:
            continue
        # 4 bits are counted as 8: there is nothing to be found singular values of
        named = ("w8a8" if t.startswith("svdquant") else t for t in candidate.techniques)
        techniques = tuple(t for t in named if not t.startswith("compile"))
        net = bench.network(case, bench.Candidate(candidate.name, techniques), "meta", "eager")
        held += sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
        plain = plain or held
        if candidate.name == bench.PLAIN:
            given = case.inputs("meta", half)
            call = rehearse(lambda net=net, given=given: net(**given, return_dict=False), [net], copies=False)
    assert 23e9 < plain < 25e9 and call.peak < 4e9
    assert held + plain + 2 * call.peak < 0.96 * MEMORY
