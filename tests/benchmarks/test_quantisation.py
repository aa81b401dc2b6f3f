"""The benchmark of packed weights, in its smallest form, on a tiny random model."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
import tiny_models
from sfumato.pipelines.loading import open_model

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.flux(tmp_path / "flux")
    (folder / "sfumato.json").write_text(json.dumps({"width": 64, "height": 64}))
    model = open_model(folder)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    harness = importlib.import_module("harness")
    spec = importlib.util.spec_from_file_location("benchmark_quant", ROOT / "benchmarks" / "quantisation.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    given = harness.Options("", repeats=1, steps=2, device="cpu", dry=True)
    plain, names = model.denoise.net, ("weight-only nf4", "svdquant W4A8")
    rows = bench.measure(model, given, names, timed=1, judged=False)
    assert [r.what.partition(":")[0] for r in rows] == [name for name in names for _ in range(4)]
    assert [r.unit for r in rows] == ["x", "x", "dB", "dB"] * 2 and model.denoise.net is plain
    assert all(r.median > 0 for r in rows)
