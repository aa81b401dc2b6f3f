"""Ctrl+C: nothing is lost, and the resumed run gives the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sfumato.app import generation
from sfumato.pipelines.checkpoint import Checkpoint


@pytest.fixture
def interrupt_at(monkeypatch):
    """Send SIGINT after a step of the run, counted over all images."""
    watch = generation._watch

    def install(at: int) -> None:
        def watched(run, first, work):
            on_step = watch(run, first, work)

            def then(event):
                on_step(event)
                if first * event.steps + event.step == at:
                    signal.raise_signal(signal.SIGINT)

            return then

        monkeypatch.setattr(generation, "_watch", watched)

    return install


def test_resume_gives_the_same_bytes(generate, sfumato, interrupt_at):
    options = ("a cube", "--steps", "5", "--seed", "3", "--count", "3", "--sampler", "euler-ancestral")
    assert generate(*options, "-o", "whole/").code == 0
    interrupt_at(7)
    said = generate(*options, "-o", "cut/")
    assert said.code == 130 and said.out.split() == ["cut/0000.png"]
    assert "step 2 of 5, image 2 of 3" in said.err and "--resume cut/0001.resume" in said.err
    assert Checkpoint.load("cut/0001.resume").step == 2
    interrupt_at(-1)
    said = sfumato("generate", "--resume", "cut/0001.resume")
    assert said.code == 0, said.err
    for name in ("0000.png", "0001.png", "0002.png"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()
    assert sorted(p.name for p in Path("cut").iterdir()) == ["0000.png", "0001.png", "0002.png"]


def test_other_weights_are_refused(generate, sfumato, interrupt_at, tmp_path):
    import tiny_models

    other = tiny_models.stable_diffusion(tmp_path / "model")
    interrupt_at(1)
    assert sfumato("generate", "x", "-m", other, "--size", "64", "--steps", "3", "-o", "a.png").code == 130
    Path("kept").mkdir()
    os.rename(other, "kept/first")
    tiny_models.stable_diffusion(tmp_path / "model", prediction="v_prediction", channels=8)
    said = sfumato("generate", "--resume", "a.resume")
    assert said.code == 2 and "other weights" in said.err


def test_broken_resume_file(sfumato):
    Path("a.resume").write_bytes(b"nonsense")
    assert sfumato("generate", "--resume", "a.resume").code == 2


def test_a_real_process_is_interrupted(tiny):
    """130, one sentence, a checkpoint, and no half-written file."""
    command = [sys.executable, "-m", "sfumato.app", "generate", "x", "-m", str(tiny), "--size", "64"]
    command += ["--steps", "400", "--preview-every", "1", "-o", "run/"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while not Path("run/0000.preview.png").exists() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert "sfumato generate --resume run/0000.resume" in err
    assert Checkpoint.load("run/0000.resume").step >= 1
    assert not list(Path("run").glob(".*"))


def test_a_run_from_a_picture_goes_on_with_the_same_picture_only(generate, sfumato, interrupt_at):
    """Resumed: the bytes of the whole run, kept part included; with another picture: refused, and nothing written."""
    from PIL import Image

    Image.effect_noise((64, 64), 90).convert("RGB").save("photo.png")
    Image.linear_gradient("L").resize((64, 64)).point(lambda v: 255 * (v > 127)).save("mask.png")
    options = (
        "x",
        "--steps",
        "6",
        "--seed",
        "3",
        "-i",
        "photo.png",
        "--mask",
        "mask.png",
        "--strength",
        "0.8",
    )
    assert generate(*options, "-o", "whole.png").code == 0
    interrupt_at(2)
    assert generate(*options, "-o", "cut.png").code == 130
    interrupt_at(-1)
    Path("photo.png").rename("away.png")
    Image.new("RGB", (64, 64)).save("photo.png")
    said = sfumato("generate", "--resume", "cut.resume")
    assert said.code == 2 and "belongs to other pictures" in said.err
    assert not Path("cut.png").exists()
    Path("away.png").replace("photo.png")
    said = sfumato("generate", "--resume", "cut.resume")
    assert said.code == 0, said.err
    assert Path("cut.png").read_bytes() == Path("whole.png").read_bytes()
