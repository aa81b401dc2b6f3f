"""`--parallel`: the picture of one process, one sentence and no hang when a process fails, Ctrl+C and resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from PIL import Image, ImageChops
from sfumato.app.replay import read_record
from sfumato.app.sharing import Parallel
from sfumato.kernels.native.around import available
from sfumato.pipelines.errors import BadInput

ASK = ("--size", "64x64", "--seed", "1", "-p", "a cube", "-n", "a dog", "--device", "cpu")


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sfumato.app", "generate", *map(str, (*ASK, *arguments))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def members(parent: int) -> list[int]:
    """The processes that it started, by rank."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def far(a: str, b: str) -> int:
    both = ImageChops.difference(Image.open(a).convert("RGB"), Image.open(b).convert("RGB"))
    return max(high for _, high in both.getextrema())


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
def test_is_the_picture_of_one_process(sfumato: Any, tiny: Path, tmp_path: Path) -> None:
    given = ("-m", tiny, "--steps", "3", "--count", "2")
    assert sfumato("generate", *ASK, *given, "-o", "one.png").code == 0
    code, out, err = ended(start(*given, "-o", "two.png", "--parallel", "cfg=2"))
    assert code == 0, err
    assert out.split() == ["two-0000.png", "two-0001.png"], "one process alone talks"
    assert err.count("images in") == 1
    for index in ("0000", "0001"):
        assert far(f"one-{index}.png", f"two-{index}.png") <= 1
    assert read_record(Path("two-0000.png"))["machine"]["parallel"] == "cfg=2"
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        *("one-0000.png", "one-0001.png", "two-0000.png", "two-0001.png")
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes were started")
def test_a_process_that_dies_ends_all(tiny: Path, tmp_path: Path) -> None:
    main = start("-m", tiny, "--steps", "400", "--preview-every", "1", "-o", "a.png", "--parallel", "cfg=2")
    until(Path("a.preview.png").exists, main)
    os.kill(members(main.pid)[1], signal.SIGKILL)
    began = time.monotonic()
    code, _, err = ended(main)
    assert time.monotonic() - began < 60
    assert code == 1 and "process 2 of 2 was ended by SIGKILL, so all were ended" in err
    assert "Traceback" not in err and not Path("a.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes were started")
def test_a_process_that_stands_still_ends_all(tiny: Path, tmp_path: Path) -> None:
    more = ("--preview-every", "1", "-o", "a.png", "--parallel", "cfg=2,timeout=3")
    main = start("-m", tiny, "--steps", "400", *more)
    until(Path("a.preview.png").exists, main)
    os.kill(members(main.pid)[1], signal.SIGSTOP)
    code, _, err = ended(main)
    assert code == 1 and "another process of the group ended or stood still" in err
    assert "Traceback" not in err and not Path("a.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a signal to the one that watches")
def test_interrupted_and_taken_up(tiny: Path, tmp_path: Path) -> None:
    given = ("-m", tiny, "--steps", "100", "--parallel", "cfg=2")
    whole = ended(start(*given, "-o", "whole.png"))
    assert whole[0] == 0, whole
    main = start(*given, "--preview-every", "1", "-o", "a.png")
    until(Path("a.preview.png").exists, main)
    main.send_signal(signal.SIGINT)
    code, _, err = ended(main)
    assert code == 130 and "go on with: sfumato generate --resume a.resume" in err, err
    command = [sys.executable, "-m", "sfumato.app", "generate", "--resume", "a.resume", "--parallel", "cfg=2"]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    assert far("a.png", "whole.png") == 0


@pytest.mark.slow
def test_refused_once_in_one_sentence(tiny: Path, tmp_path: Path) -> None:
    code, _, err = ended(start("-m", tiny, "--guidance", "1", "-o", "a.png", "--parallel", "cfg=2"))
    assert code == 2 and err.count("parallel: 'cfg=2' has nothing to spread") == 1
    code, _, err = ended(start("-m", tiny, "-o", "a.png", "--parallel", "ulysses=2"))
    assert code == 2 and err.count("has no site 'blocks'") == 1 and not Path("a.png").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--parallel", "cfg=3"), "parallel: 'cfg=3' has only 2 conditions to spread; take cfg=2"),
        (("--parallel", "cfg=2", "--guidance", "1"), "parallel: 'cfg=2' has nothing to spread"),
        (("--parallel", "ulysses=2"), "has no site 'blocks'"),
        (
            ("--parallel", "ulysses=2", "-t", "deepcache", "-t", "attention"),
            "parallel: 'ulysses=2' leaves no room for other patches; drop deepcache, attention",
        ),
        (
            ("--parallel", "ulysses=2", "--reuse", "0.05"),
            "reuse: 0.05 takes patches, for which --parallel ulysses leaves no room; leave --reuse out",
        ),
        (("--parallel", "cfg=2", "--device", "cuda:1"), "device: 'cuda:1' is one device"),
        (("--parallel", "cfg=2", "-t", "swiftdiffusion:at=null"), "lets each process choose its own step"),
    ],
)
def test_what_can_not_be_shared_is_refused_in_a_dry_run_too(
    sfumato: Any, tiny: Path, given: tuple[str, ...], told: str
) -> None:
    said = sfumato("generate", *ASK[:-2], "-m", tiny, "--steps", "2", *given, "-o", "a.png", "--dry-run")
    assert said.code == 2 and told in said.err and said.err.count("\n") == 1, said.err


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.mark.skipif(available() is not None, reason=str(available()))
def test_a_level_makes_way(sfumato: Any, flux: Path) -> None:
    ask = ("generate", *ASK, "-m", flux, "--steps", "2", "--guidance", "3", "--optimize", "fast", "--json")
    for key, taken in (
        ("cfg=2", ["int8", "winograd", "int8-attention"]),
        ("ulysses=2", ["int8", "winograd"]),
    ):
        said = sfumato(*ask, "--dry-run", "--parallel", key)
        assert said.code == 0, said.err
        assert [t["id"] for t in said.data["request"]["techniques"]] == taken
    why = "--parallel ulysses leaves no room for other patches"
    assert f"int8-attention is left out: {why}" in said.err
    assert f"nothing is reused across steps: {why}" in said.err


@pytest.mark.slow
def test_a_level_by_several_is_that_of_one(sfumato: Any, flux: Path) -> None:
    given = ("-m", flux, "--steps", "3", "--optimize", "exact")
    assert sfumato("generate", *ASK, *given, "-o", "one.png").code == 0
    code, _, err = ended(start(*given, "-o", "two.png", "--parallel", "ulysses=2"))
    assert code == 0 and far("one.png", "two.png") <= 1, err


@pytest.mark.parametrize("text", ["2", "cfg", "cfg=0", "cfg=2,cfg=2", "ring=2", "cfg=1.5", ""])
def test_words_that_are_no_parallel(text: str) -> None:
    with pytest.raises(BadInput, match=r"parallel: .* is not KEY=N"):
        Parallel.read(text)


def test_words_that_are(sfumato: Any, tiny: Path) -> None:
    assert str(Parallel.read("ulysses=2, cfg=2,timeout=9")) == "cfg=2,ulysses=2"
    with pytest.raises(BadInput, match=r"must be in 1\.\.64"):
        Parallel.read("cfg=100")
    said = sfumato("generate", *ASK[:-2], "--device", "cuda:1", "-m", tiny, "--parallel", "cfg=2")
    assert said.code == 2 and "device: 'cuda:1' is one device" in said.err
