"""The harness on trivial functions, and the benchmarks on a tiny random model: they run, and say what they should."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from types import ModuleType

import pytest
import tiny_models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("harness", monkeypatch)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of benchmarks/, imported as it sees its neighbours."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


def test_rounds_are_interleaved_and_the_warmup_does_not_count(harness: ModuleType) -> None:
    calls: list[str] = []
    seconds = harness.interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1
    )
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_the_slower_one_is_found(harness: ModuleType) -> None:
    seconds = harness.interleave(
        {"slow": lambda: time.sleep(0.03), "fast": lambda: time.sleep(0.003)}, repeats=3
    )
    assert sorted(harness.ratios(seconds["slow"], seconds["fast"]))[1] > 1.5


def test_ratios_are_taken_pair_by_pair(harness: ModuleType) -> None:
    assert harness.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError):
        harness.ratios([1.0], [1.0, 2.0])


def test_a_row_has_median_and_spread(harness: ModuleType) -> None:
    found = harness.row("x", [3.0, 1.0, 10.0], "s", bar="<= 4")
    assert (found.median, found.low, found.high, found.n) == (3.0, 1.0, 10.0, 3)
    assert str(found) == "x: 3 s [1..10, n=3]  (bar <= 4)"


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 1), (1, -1)])
def test_wrong_counts_are_refused(harness: ModuleType, repeats: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="repeats must be 1 or more"):
        harness.interleave({}, repeats=repeats, warmup=warmup)


def test_results_hold_machine_command_and_rows(harness: ModuleType, tmp_path: Path) -> None:
    about = harness.machine()
    path = harness.write("x", "Title", [harness.row("a", [1.0], "s")], about, tmp_path)
    found = json.loads(path.read_text())
    assert found["machine"]["cpu"] and found["machine"]["cores"] >= 1 and found["machine"]["torch"]
    assert found["command"].startswith("python benchmarks/")
    assert found["rows"][0] == {
        "what": "a", "median": 1.0, "low": 1.0, "high": 1.0, "unit": "s", "n": 1, "bar": "", "headline": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random flux with a card that asks for guidance and small pictures."""
    folder = tiny_models.flux(tmp_path_factory.mktemp("flux"), shift=1.0)
    card = {"name": "tiny", "steps": 2, "guidance": 3.0, "width": 64, "height": 64, "schedule": "uniform"}
    (folder / "sfumato.json").write_text(json.dumps(card))
    return folder


def test_a_picture_is_compared_with_its_network_calls_and_with_diffusers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, harness = script("generate", monkeypatch), script("harness", monkeypatch)
    given = harness.Options(str(tiny), repeats=1, steps=2, device="cpu", dry=True)
    rows = {row.what: row for row in generate.warm_rows(generate.open_model(tiny), given)}
    assert rows["warm picture / its network calls"].median > 1
    assert rows["plain diffusers / ours"].median > 0
    assert rows["largest difference from diffusers' picture"].median <= 1


def test_the_recorded_network_calls_are_those_of_the_picture(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = script("generate", monkeypatch)
    model, seen = generate.open_model(tiny), []
    bare = generate.bare_network(model, 3)
    model.denoise.net.register_forward_hook(lambda *_: seen.append(1))
    bare()
    assert len(seen) == 3


def test_the_network_is_held_against_the_roof(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, harness = script("network", monkeypatch), script("harness", monkeypatch)
    given = harness.Options(str(tiny), repeats=1, steps=2, device="cpu", dry=True)
    monkeypatch.setattr(network, "SIZES", (64, 128))
    rows = network.measure(network.open_model(tiny), given)
    assert len(rows) == 1 + 2 * len(network.IMAGES)
    assert all(row.median > 0 for row in rows)


def test_counted_work_grows_with_the_images(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = script("network", monkeypatch)
    model = network.open_model(tiny)
    one, four = (network.count(network.one_call(model, n, "cpu")) for n in (1, 4))
    assert 0 < one < four <= 4 * one


def test_stages_of_a_cold_process_add_up(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = script("cold", monkeypatch)
    began = time.perf_counter()
    monkeypatch.setattr(cold, "BEGAN", began)
    found = cold.stages(str(tiny), "a cube", 2, tmp_path / "a.png")
    whole = time.perf_counter() - began
    assert list(found) == [
        "import torch",
        "import the rest",
        "load the weights",
        "write",
        "encode",
        "sample",
        "decode",
    ]
    assert all(seconds >= 0 for seconds in found.values())
    assert sum(found.values()) == pytest.approx(whole, abs=0.1)
    assert (tmp_path / "a.png").stat().st_size > 0


def test_scenes_are_counted_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    world, harness = script("world", monkeypatch), script("harness", monkeypatch)
    monkeypatch.setattr(world, "CASES", {"small": (2, 16, ("rgb",))})
    (row,) = world.measure(harness.Options("", repeats=1, steps=1, device="cpu", dry=True))
    assert row.unit == "scenes/s" and row.median > 0


@pytest.mark.slow
def test_polling_is_measured_while_a_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    serving, harness = script("serving", monkeypatch), script("harness", monkeypatch)
    monkeypatch.setattr(serving, "PAUSE", 0.01)
    given = harness.Options("still-life", repeats=1, steps=20, device="cpu", dry=True)
    rows = serving.measured(given, clients=3, seconds=1.0)
    assert [row.unit for row in rows] == ["ms", "ms", "answers/s"] and all(row.median > 0 for row in rows)
