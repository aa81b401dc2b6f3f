"""The plan of a run: predicted, made to fit, refused with numbers, kept in the result, mended when memory runs out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sfumato.app import assembly, easing, planning
from sfumato.app.assembly import on_device, open_for, resolve
from sfumato.app.chosen import Technique
from sfumato.app.estimates import estimate
from sfumato.app.faults import Failure
from sfumato.app.metadata import open_image, read_metadata
from sfumato.app.optimize import opened
from sfumato.app.planning import after_failure, before_opening
from sfumato.app.rates import costs_file, kinds, rates, seconds
from sfumato.app.requests import GenerateRequest
from sfumato.app.room import Room, room
from sfumato.app.shelf import Shelf
from sfumato.app.weighing import Weights, weigh
from sfumato.kernels.quant.int8 import available as int8
from sfumato.pipelines.converts.dgq import Dgq
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.loading import find_model
from sfumato.pipelines.quantised import quantise

SMALL = Weights(total=10**6, staying=10**5, largest=10**4)


def request(**given: Any) -> GenerateRequest:
    return GenerateRequest(**{"prompt": "a red cube", "steps": 2, "seed": 1, **given})


def settled(**given: Any) -> tuple[GenerateRequest, Any, Weights]:
    model, asked, weights, *_ = open_for(on_device(request(**given)), Shelf())
    return resolve(asked, model), model, weights


def test_weights_are_known_before_opening(tiny: Path) -> None:
    _, model, found = settled(model=str(tiny))
    weights = weigh([tiny], "float32")
    assert weights.total == 4 * sum(model.info()["parameters"].values())
    assert found.total == pytest.approx(weights.total, rel=0.01)  # buffers that no file holds
    assert (found.staying, found.largest) == (weights.staying, weights.largest)
    assert found.saved == pytest.approx(weights.saved, rel=0.01) and found.saved > found.total // 4
    assert 0 < weights.largest < weights.staying < weights.total
    assert weigh([tiny], "bfloat16").total == weights.total // 2
    assert weigh([tiny / "nowhere"], "float32") == Weights()


def test_the_estimate_grows_with_what_is_asked(tiny: Path) -> None:
    asked, model, weights = settled(model=str(tiny), width=64, height=64)
    given = Room(10**6, 10**9)

    def found(**changed: Any) -> Any:
        return estimate(asked.model_copy(update=changed), model, weights, given, timed=True)

    one, wide, many = found(), found(width=128, height=128), found(batch=4, count=4)
    assert wide.phases["sample"] > one.phases["sample"] and wide.phases["decode"] > one.phases["decode"]
    assert many.phases["sample"] > one.phases["sample"] and many.phases["decode"] == one.phases["decode"]
    assert one.seconds > 0 and many.seconds > 3 * one.seconds
    cached, never = (found(techniques=(Technique(id=name),)) for name in ("deepcache", "block-cache"))
    assert cached.phases["sample"] > one.phases["sample"] and cached.seconds == pytest.approx(one.seconds)
    assert never.phases == one.phases, "the run will say that a UNet has no such blocks"
    held = found(offload=weights.moving / 2e9)
    assert held.phases["sample"] == one.phases["sample"] - weights.moving + weights.moving // 2


def test_offload_is_chosen_and_changes_no_bit(
    generate: Callable[..., Any], own_folder: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    ask = ("a red cube", "--seed", "3", "--dtype", "bfloat16")  # for which there are no 8 bits
    assert generate(*ask, "-o", "plain.png").code == 0
    monkeypatch.setattr(planning, "room", lambda device: Room(10**8, 10**12))
    monkeypatch.setattr(planning, "beside", lambda model, held: 10**8)
    asked, model, weights = settled(model=str(tiny), width=64, height=64, dtype="bfloat16")
    whole = estimate(
        asked.model_copy(update={"decode": "whole", "offload": 0.0}), model, weights, Room(10**8, 1)
    )
    limit = (whole.peak - weights.moving // 3) / 1e9
    said = generate(*ask, "-o", "fit.png", "--memory", str(limit))
    assert said.code == 0 and "planned to fit into" in said.err and "weights are held in part" in said.err
    record = read_metadata(Path("fit.png")).record  # type: ignore[union-attr]
    assert 0 < record["request"]["offload"] < weights.moving / 1e9
    assert any("of the weights are held at once" in note for note in record["notes"])
    assert open_image(Path("fit.png")).tobytes() == open_image(Path("plain.png")).tobytes()


def test_what_offload_holds_is_said(generate: Callable[..., Any]) -> None:
    for gigabytes, words in (
        ("500", "all weights fit into the 500 GB"),
        ("0.0001", "0.0001 GB of the weights are held"),
    ):
        said = generate("a red cube", "-o", "held.png", "--offload", gigabytes)
        assert said.code == 0
        record = read_metadata(Path("held.png")).record  # type: ignore[union-attr]
        assert any(words in note for note in record["notes"])


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(generate: Callable[..., Any], device: str) -> None:
    said = generate("a red cube", "-o", "no.png", "-t", f"superpipeline:budget=0.01,device={device}")
    assert said.code == 2 and "device must be" in said.err and repr(device) in said.err
    assert len(said.err.splitlines()) == 1 and not Path("no.png").exists()


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> float:
    """GB in which the tiny model fits with its network in 8 bits, and not without."""
    monkeypatch.setattr(planning, "KERNELS", 0)
    monkeypatch.setattr(assembly, "room", lambda device: Room(10**8, 10**12))
    monkeypatch.setattr(planning, "room", lambda device: Room(10**8, 10**12))
    monkeypatch.setattr(planning, "beside", lambda model, held: 10**8)
    asked, model, weights = settled(model=str(tiny), width=64, height=64)
    whole = asked.model_copy(update={"decode": "whole", "offload": 0.0})
    return (estimate(whole, model, weights, Room(10**8, 1)).peak - weights.saved // 8) / 1e9


@pytest.mark.skipif(int8() is not None, reason=str(int8()))
def test_a_network_in_8_bits_is_chosen_and_replays(
    sfumato: Any, generate: Callable[..., Any], own_folder: Path, limit: float
) -> None:
    said = generate("a red cube", "--seed", "3", "-o", "fit.png", "--memory", str(limit))
    assert said.code == 0 and "the network's weights are held in 8 bits" in said.err
    record = read_metadata(Path("fit.png")).record  # type: ignore[union-attr]
    assert record["request"]["techniques"] == [{"id": "int8", "settings": {}}]
    assert record["request"]["offload"] == 0 and "computes in 8 bits" in " ".join(record["notes"])
    assert generate("a red cube", "--seed", "3", "-o", "hand.png", "-t", "int8").code == 0
    assert open_image(Path("fit.png")).tobytes() == open_image(Path("hand.png")).tobytes()
    again = sfumato("replay", "fit.png", "-o", "again.png", "--json")
    assert again.code == 0 and again.data["same_bytes"], again.data


@pytest.mark.parametrize(
    "given",
    [{"prompt": "a cube <lora:ink:1>"}, {"loras": ("ink",)}, {"wildcards": "."}, {"dtype": "bfloat16"}],
)
def test_8_bits_are_left_out_where_they_are_refused(given: dict[str, Any]) -> None:
    weights, now = Weights(total=10**9, staying=10**8, largest=10**6, saved=6 * 10**8), Room(10**8, 10**12)
    for memory, chosen in ((1.2, []), (0.6, ["int8"])):
        asked = on_device(request(memory=memory))
        took, told = before_opening(asked, weights, now)
        assert [technique.id for technique in took.techniques] == chosen and len(told) == len(chosen)
    took, told = before_opening(on_device(request(memory=0.6, **given)), weights, now)
    assert not took.techniques and took.offload and told == (planning.OFFLOAD.told,)
    took, told = before_opening(on_device(request(memory=0.3)), weights, now)
    # a network is converted with all its weights in memory, and in 8 bits they are too much too
    assert not took.techniques and took.offload and told == (planning.OFFLOAD.told,)


@pytest.mark.skipif(int8() is not None, reason=str(int8()))
def test_a_packed_network_whose_weights_rest_is_weighed_without_them(sfumato: Any, tmp_path: Path) -> None:
    """The second form, in 8 bits, is made as a layer is called, and counts as what stays. Files in half precision."""
    packed, ask = (
        tmp_path / "packed",
        ("generate", "a red cube", "--size", "64x64", "--steps", "2", "--seed", "1"),
    )
    quantise(find_model("still-life-unet"), packed, {"unet": Dgq()}, said={"unet": ""})
    assert sfumato(*ask, "-m", packed, "-o", "plain.png").code == 0
    said = sfumato(*ask, "-m", packed, "-o", "held.png", "--offload", "0.004")
    assert said.code == 0, said.err
    assert open_image(Path("held.png")).tobytes() == open_image(Path("plain.png")).tobytes()
    _, model, found = settled(model=str(packed), width=64, height=64)
    vae = sum(t.nbytes for t in (*model.codec.vae.parameters(), *model.codec.vae.buffers()))
    assert found.staying > vae


def test_a_network_is_converted_only_where_all_its_weights_fit(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They rest in files later, and are all in memory while it is done."""
    monkeypatch.setattr(assembly, "room", lambda device: Room(10**8, 10**12))
    weights = weigh([tiny], "float32")
    short = (10**8 + weights.total - weights.moving // 3) / 1e9
    ask = {"model": str(tiny), "device": "cpu", "dtype": "float32", "memory": short}
    named = request(**ask, techniques=("weight-only:smallest=64",))
    with pytest.raises(
        BadInput, match="weight-only:smallest=64' is made with all weights in memory, which takes"
    ):
        open_for(named, Shelf())
    found = opened(request(**ask, optimize="small"), Shelf())
    assert not found.request.techniques and found.request.offload and not found.notes
    assert found.lightened[-1].startswith(
        "weight-only left out, made with all weights in memory, which takes"
    )
    ample = opened(request(**ask | {"memory": 2 * short}, optimize="small"), Shelf())
    assert [technique.id for technique in ample.request.techniques] == ["weight-only"]


def test_refused_with_the_numbers(generate: Callable[..., Any], own_folder: Path) -> None:
    said = generate("a red cube", "--memory", "0.01", "-o", "no.png")
    assert said.code == 2 and not Path("no.png").exists()
    assert "memory: '0.01 GB' is too little: 64x64 in float32 needs 0." in said.err
    assert "ask for a smaller --size" in said.err and said.err.count("\n") == 1


def test_dry_run_says_memory_and_time(generate: Callable[..., Any]) -> None:
    plan = generate("a red cube", "--dry-run", "--json").data["plan"]
    assert plan["seconds"] > 0 and plan["weights_bytes"] < plan["peak_bytes"] < plan["limit_bytes"]
    assert plan["peak_bytes"] == max(plan["phase_bytes"].values()) and plan["planned_down"] == []
    assert costs_file().is_file()


def test_every_rung_is_taken_in_order(tiny: Path) -> None:
    asked, _, _ = settled(model=str(tiny), width=64, height=64, batch=4, count=4)
    told, phase = [], "sample"
    for phase in ("decode", "decode", "sample", "sample", "sample"):
        found = after_failure(asked, SMALL, phase)
        assert found is not None
        asked, how = found
        told.append(how.split()[0])
    assert (asked.decode, asked.batch) == ("stripes", 1)
    assert told == ["pictures", "weights", "fewer", "fewer", "weights"]
    while found is not None:
        found = after_failure(asked, SMALL, "decode")
        asked = found[0] if found else asked
    assert asked.decode == "tiles" and asked.offload == pytest.approx(57e-6)


def test_rates_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = rates("cpu", "float32")
    assert set(first) == set(kinds("cpu", "float32")) and all(value > 0 for value in first.values())
    monkeypatch.setattr("sfumato.app.rates.measured", lambda *given: pytest.fail("measured again"))
    assert rates("cpu", "float32") == first
    assert seconds({"product": 2 * first["product"]}, first) == pytest.approx(2)


def test_a_broken_file_of_rates_is_measured_over() -> None:
    file = costs_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{")
    assert rates("cpu", "float32")["moved"] > 0
    assert isinstance(json.loads(file.read_text()), dict)


def test_room_is_that_of_the_process() -> None:
    now = room("cpu")
    assert 10**7 < now.held < now.most


CHILD = """
import resource, sys
from sfumato.app import cli, planning
from sfumato.app.room import Room
model, out, spare = sys.argv[1], sys.argv[2], int(sys.argv[3])
arguments = ["generate", "a red cube", "-m", model, "--size", "768x768", "--steps", "1", "--seed", "3", "-o"]
assert cli.main([*arguments[:5], "64x64", *arguments[6:], out]) == 0  # everything is loaded
planning.surely_fits = lambda *given: True  # the plan is not to foresee it
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))
sys.exit(cli.main([*arguments, out]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_memory_that_runs_out_while_decoding(tmp_path: Path) -> None:
    def run(spare: int) -> tuple[int, str, Path]:
        out = tmp_path / f"{spare}.png"
        command = [sys.executable, "-c", CHILD, "still-life", str(out), str(spare)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stderr, out

    # what threads and the C library hold of the address space differs from run to run
    tried = []
    told = "memory ran out while the run was to decode; it goes on: pictures are decoded in stripes"
    for spare in (310, 300, 290, 280, 270, 260, 245):
        code, said, out = run(spare * 1_000_000)
        tried.append(said)
        assert "Traceback" not in said
        if code == 0 and told in said:
            record = read_metadata(out).record  # type: ignore[union-attr]
            if record["request"]["decode"] == "tiles":  # stripes were not enough
                break
    else:
        pytest.fail(str(tried))
    assert any("decoded in tiles, blended" in note for note in record["notes"])


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("could not create a memory object", True),
        ("could not create a primitive", True),
        ("could not create a primitive descriptor for the convolution", False),
        ("shapes don't match", False),
    ],
)
def test_which_failures_are_for_want_of_memory(said: str, memory: bool) -> None:
    def fails() -> None:
        raise RuntimeError(said)

    with pytest.raises(easing.OutOfMemory if memory else RuntimeError) as found:
        easing.built(fails)
    assert isinstance(found.value, easing.OutOfMemory) == memory


def test_down_to_the_foot(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rung is tried; at the foot of the ladder the failure is told."""
    calls: list[str] = []

    def fails(run: Any) -> None:
        calls.append(run.request.decode)
        raise easing.OutOfMemory("out of memory")

    from sfumato.app.console import Console
    from sfumato.app.generation import prepare
    from sfumato.app.local import LocalWork

    run = prepare(request(model=str(tiny), width=64, height=64), LocalWork(Console(quiet=True)))
    with pytest.raises(Failure, match="out of memory"):
        easing.eased(run, LocalWork(Console(quiet=True)), "decode", fails)
    assert calls[:2] == ["whole", "stripes"] and calls[-1] == "tiles" and len(calls) == 4


def test_a_job_is_planned_too(tiny: Path, own_folder: Path) -> None:
    from sfumato.app.jobs.runner import Runner
    from sfumato.app.jobs.store import Store

    store = Store(own_folder / "jobs")
    id = store.submit(request(model=str(tiny), width=64, height=64, offload=0.0001, decode="stripes"))
    low = store.submit(request(model=str(tiny), width=64, height=64, memory=0.01))
    Runner(Store(store.home)).run()
    assert store.get(id).state == "completed"
    assert store.get(low).state == "failed" and "is too little" in store.get(low).error
