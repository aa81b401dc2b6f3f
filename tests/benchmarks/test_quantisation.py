"""The benchmark of packed weights, in its smallest form, on a tiny random model."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from PIL import Image
from sfumato.kernels.quant.stored import held_bytes
from sfumato.pipelines.loading import open_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    folder = tiny_models.flux(tmp_path / "flux")
    (folder / "sfumato.json").write_text(json.dumps({"width": 64, "height": 64}))
    return open_model(folder)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("benchmark_quant", ROOT / "benchmarks" / "quantisation.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    return bench


def test_the_benchmark(bench: Any, model: Any) -> None:
    given = bench.Options("", repeats=1, steps=2, device="cpu", dry=True)
    plain, names = model.denoise.net, ("weight-only nf4", "svdquant W4A8")
    ways = bench.methods(model, 2, names)
    assert tuple(ways) == names
    rows = bench.measure(model, given, ways, timed=1, judged=False)
    assert [r.what.partition(":")[0] for r in rows] == [name for name in names for _ in range(4)]
    assert [r.unit for r in rows] == ["x", "x", "dB", "dB"] * 2 and model.denoise.net is plain
    assert all(r.median > 0 for r in rows)


def test_formats_by_layer_and_their_sheet(
    bench: Any, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("scipy")
    monkeypatch.setattr(bench, "MIXED", ("int3", "int4", "int8"))
    monkeypatch.setattr(bench, "TRIED", 1)
    monkeypatch.setattr(bench, "STEPS", 2)
    ways = bench.mixed(model)
    sizes = [held_bytes(convert(copy.deepcopy(model.denoise.net))) for convert in ways.values()]
    assert 0.9 * sizes[0] < sizes[1] <= sizes[0] and 0.9 * sizes[2] < sizes[3] <= sizes[2]
    bench.sheet(model, ways, 2, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (4 * 64, 5 * 64)
