"""The benchmark of reuse, in its smallest form, on tiny random models; and the comparison that it rests on."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from sfumato.app.reuse import NEGATIVE, SKIPS, SKIPS_AND_NEGATIVE
from sfumato.assets.recipes.reuse import Way, compare, curve
from sfumato.pipelines.guidance.cfg_skip import CfgSkip
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches.deepcache import DeepCache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_models.stable_diffusion(tmp_path_factory.mktemp("sd"))
    (folder / "sfumato.json").write_text(json.dumps({"width": 64, "height": 64, "guidance": 3.0}))
    return open_model(folder)


def test_a_way_against_the_full_run(model: Any) -> None:
    found = compare(model, {"same": Way(), "less": Way((DeepCache(2),))}, ["a cube", "two"], steps=3)
    assert found["same"].losses == [0.0, 0.0] and found["same"].psnr == [math.inf, math.inf]
    assert all(0 < loss < 2 for loss in found["less"].losses)
    assert all(0 < psnr < 100 for psnr in found["less"].psnr)
    assert all(time > 0 for way in found.values() for time in way.times)
    made = curve(found, 3)
    assert [p.technique for p in made.points] == ["same", "less"] and made.points[0].loss == 0


def test_the_benchmark(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    harness = importlib.import_module("harness")
    spec = importlib.util.spec_from_file_location("benchmark_reuse", ROOT / "benchmarks" / "reuse.py")
    assert spec is not None and spec.loader is not None  # a checkout of the same name is a module, too
    reuse = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reuse)
    given = harness.Options("", repeats=1, steps=2, device="cpu", dry=True)
    chosen = reuse.ways(model)
    few = {name: chosen[name] for name in (NEGATIVE[0], SKIPS[0], SKIPS_AND_NEGATIVE[0])}
    assert few[NEGATIVE[0]].guidance == CfgSkip(3.0, 2, 0.25)
    rows = reuse.measure(model, given, few, judged=0)
    assert [row.unit for row in rows] == ["x", "share", "dB"] * 3
    assert all(row.median >= 0 for row in rows)
