"""What goes wrong outside of the request: weights, disks, memory. Nothing is left half-written."""

from __future__ import annotations

import errno
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sfumato.app.output import write_whole


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def unet(model: Path) -> Path:
    return next((model / "unet").glob("*.safetensors"))


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was run')",))


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "zeros", "missing", "no index", "bad index"])
def test_bad_weights(sfumato, model, damage):
    path = unet(model)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif damage == "zeros":
        path.write_bytes(bytes(1000))
    elif damage == "missing":
        path.unlink()
    elif damage == "no index":
        (model / "model_index.json").unlink()
    else:
        (model / "model_index.json").write_text('{"_class_name": "SculpturePipeline"}')
    said = sfumato("generate", "x", "-m", model, "--size", "64", "--steps", "1", "-o", "a.png")
    assert said.code == 2 and said.out == "" and len(said.err.strip().splitlines()) == 1, said
    assert not Path("a.png").exists()
    if damage in ("cut", "empty", "pickle", "zeros"):
        said = sfumato("inspect", path)
        assert said.code == 2 and len(said.err.strip().splitlines()) == 1, said


def test_inspect_weights(sfumato, model):
    data = sfumato("inspect", unet(model), "--json").data
    assert (
        data["kind"] == "weights"
        and data["count"] == len(data["tensors"]) > 10
        and data["dtypes"].keys() == {"F32"}
    )
    data = sfumato("inspect", model, "--json").data
    assert data["kind"] == "model" and data["family"] == "sd" and data["parts"]["unet"]["parameters"] > 0
    assert "UNet2DConditionModel" in sfumato("inspect", model).out
    assert sfumato("inspect", model / "unet").code == 2


def test_disk_full(tiny):
    """A child that may write files of 4 KB only: the picture does not fit."""
    code = "import sys\nfrom sfumato.app.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "generate", "x", "-m", str(tiny), "--size", "64", "--steps", "1"]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [*command, "-o", "run/"], capture_output=True, text=True, preexec_fn=small_files, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "run/0000.png: File too large; nothing half-written was left" in done.stderr
    assert list(Path("run").iterdir()) == []


def test_stdout_full(tiny):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sfumato.app", "schema", "generate"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0 and "No space left" in done.stderr


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m sfumato.app schema generate | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr and len(done.stdout) == 10


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, fail)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.png"]


def test_files_have_ordinary_rights(tmp_path):
    write_whole(tmp_path / "a", lambda file: file.write(b"x"))
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_out_of_memory_says_what_was_tried_and_ends_in_one_sentence(generate, monkeypatch):
    from sfumato.pipelines.text_to_image import TextToImage

    def exhausted(*args, **kwargs):
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(TextToImage, "sample", exhausted)
    said = generate("x", "-o", "a.png")
    *tried, last = said.err.splitlines()
    assert said.code == 1 and last.startswith("out of memory; ask for")
    assert tried and all(
        line.startswith("memory ran out while the run was to sample; it goes on") for line in tried
    )


def test_nan_is_a_failure(generate, monkeypatch):
    from sfumato.pipelines.errors import NotFinite
    from sfumato.pipelines.text_to_image import TextToImage

    def broken(*args, **kwargs):
        raise NotFinite("step 1 gave NaN: use float32")

    monkeypatch.setattr(TextToImage, "sample", broken)
    assert generate("x", "-o", "a.png").code == 1


def test_no_builtin_model(sfumato, monkeypatch, tmp_path):
    from sfumato.app import assembly

    monkeypatch.setattr(assembly, "builtin_names", lambda: [])
    said = sfumato("generate", "x", "-o", "a.png")
    assert said.code == 2 and "train builtin still-life" in said.err
