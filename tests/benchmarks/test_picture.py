"""What a picture in 8 bits with reuse loses, on the built-in UNet; and how pictures are compared."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sfumato.kernels.native.around import available

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("picture")


@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_losses(benchmark: ModuleType) -> None:
    rows = {row.what: row for row in benchmark.losses(3, 12)}
    whole, reused = (rows[f"built-in UNet, {name}: PSNR"] for name in ("8 bits", "8 bits and reuse"))
    assert whole.n == reused.n == 3
    assert 15 < reused.median < whole.median < 80
    assert all(0 <= row.median <= 1 for what, row in rows.items() if what.endswith("all right"))


def test_pictures_are_compared_one_by_one(benchmark: ModuleType) -> None:
    quality = benchmark.quality
    full = torch.zeros(2, 3, 8, 8)
    assert quality.psnr(full + torch.tensor([0.0, 0.1]).view(2, 1, 1, 1), full) == [
        quality.SAME,
        pytest.approx(20.0, abs=1e-4),
    ]
    rows = quality.rows("grey", full + 0.5, full, judged=True)
    assert [row.unit for row in rows] == ["dB", "dB", "share"] and rows[2].median == 0
