"""The benchmark of rounding, layer by layer, in its smallest form, on a tiny random model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from sfumato.pipelines.loading import open_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("benchmark_rounding", ROOT / "benchmarks" / "rounding.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    return bench


def test_the_benchmark(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.flux(tmp_path / "flux")
    (folder / "sfumato.json").write_text(json.dumps({"width": 64, "height": 64}))
    model = open_model(folder)
    plain = model.denoise.net
    monkeypatch.setattr(bench, "RANKS", (0, 8))
    monkeypatch.setattr(bench, "CALIBRATION", 1)
    monkeypatch.setattr(bench, "HELD_OUT", 1)
    rows = bench.measure(model, bench.Options("", repeats=1, steps=2, device="cpu", dry=True))
    found = {r.what: r.median for r in rows}
    assert len(found) == len(rows) and model.denoise.net is plain
    assert 0 < found["lorc, rank 8: error"] < found["lorc, rank 0: error"] == found["int4: error"]
    assert found["int8: error"] < found["int4: error"] < found["int3: error"]
    assert found["ptq4dm: PSNR"] > 0 and found["noisyquant 6: error of heavy layers"] > 0
