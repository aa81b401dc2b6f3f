"""Models of the Hub: found in its cache without a connection, downloaded on request only, pinned to a commit."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest
import tiny_models
from hub_server import COMMIT
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from sfumato.pipelines.doors import hub
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.loading import open_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def fill(cache: Path, folder: Path, repository: str = "someone/tiny") -> Path:
    """The layout of the Hub's cache: snapshots as links to blobs, and names of revisions."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for file in folder.rglob("*"):
        if file.is_file():
            blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copyfile(file, blob)
            target = snapshot / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(blob)
    return snapshot


def test_what_was_pulled_opens_offline(cache: Path, tiny: Path, offline: None) -> None:
    snapshot = fill(cache, tiny)
    for text in ("someone/tiny", "someone/tiny@main", f"someone/tiny@{COMMIT}"):
        assert hub.pulled(text) == snapshot.resolve()
    assert open_model("someone/tiny").family == "sd"
    assert hub.all_pulled() == [f"someone/tiny@{COMMIT}"]
    with pytest.raises(BadInput, match="none was pulled; `sfumato models pull someone/other` downloads it"):
        open_model("someone/other")
    with pytest.raises(BadInput, match="sfumato models pull someone/tiny@v2"):
        open_model("someone/tiny@v2")


def test_a_damaged_cache(cache: Path, tiny: Path, offline: None) -> None:
    snapshot = fill(cache, tiny)
    (cache / "models--someone--tiny/refs/main").write_text("../../../elsewhere")
    (cache.parent / "elsewhere").mkdir()
    assert_refused_or_none("someone/tiny")
    link = snapshot / "unet/config.json"
    link.unlink()
    link.symlink_to("/etc/passwd")
    with pytest.raises(BadWeights, match="links to /etc/passwd"):
        open_model(f"someone/tiny@{COMMIT}")
    link.unlink()
    chain = cache / "models--someone--tiny/blobs/chain"
    chain.symlink_to("/etc/passwd")
    link.symlink_to(chain)
    with pytest.raises(BadWeights, match="links to /etc/passwd"):
        open_model(f"someone/tiny@{COMMIT}")


def assert_refused_or_none(text: str) -> None:
    try:
        assert hub.pulled(text) is None
    except BadWeights as error:
        assert "cache is damaged" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a/b/c",
        "../b",
        "a/..",
        "a/b@..",
        "a/b@../../x",
        "a/b@/x",
        "/a/b",
        "a/b@",
        "a--b/c",
        "a/b c",
        "-a/b",
        "a/b\n",
    ],
)
def test_what_is_no_id(text: str, cache: Path) -> None:
    assert hub.parse(text) is None and hub.pulled(text) is None
    with pytest.raises(BadInput, match="no model of the Hub"):
        hub.pull(text)


@given(st.text(max_size=30))
def test_ids_never_lead_out(text: str) -> None:
    found = hub.parse(text)
    if found is not None:
        assert found.repository.count("/") == 1
        assert ".." not in text and not text.startswith(("/", "."))


def test_what_is_chosen() -> None:
    files = [
        "README.md", "model_index.json", "v1.safetensors", "v1.ckpt", "script.py", ".gitattributes",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text/model-00001-of-00002.safetensors", "text/model-00002-of-00002.safetensors",
        "text/model.fp16-00001-of-00001.safetensors", "tokenizer/merges.txt", "tokenizer/spiece.model",
    ]  # fmt: skip
    plain = {"model_index.json", "unet/config.json", "tokenizer/merges.txt", "tokenizer/spiece.model"}
    whole = {f"text/model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    half = {"vae/diffusion_pytorch_model.fp16.safetensors"}
    assert set(hub.choose(files)) == plain | whole | half | {"unet/diffusion_pytorch_model.safetensors"}
    assert set(hub.choose(files, weights=False)) == plain
    fp16 = {"unet/diffusion_pytorch_model.fp16.safetensors", "text/model.fp16-00001-of-00001.safetensors"}
    assert set(hub.choose(files, variant="fp16")) == plain | half | fp16
    assert hub.choose(["a.safetensors", "a.ckpt"]) == ["a.safetensors"]


@pytest.fixture
def server(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    folder = Path(shutil.copytree(tiny, tmp_path / "served"))
    (folder / "unet/evil.bin").write_bytes(b"\x80")
    (folder / "run.py").write_text("raise SystemExit")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_server.serving(folder) as (endpoint, asked):
        yield endpoint, asked


def test_pull(cache: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, asked = server
    found = hub.pull("someone/tiny", endpoint=endpoint)
    assert found.commit == COMMIT and found.folder.name == COMMIT
    held = {f.name for f in found.folder.rglob("*") if f.is_file()}
    assert "model_index.json" in held and "diffusion_pytorch_model.safetensors" in held
    assert not {"evil.bin", "run.py"} & held and not any(path.endswith((".bin", ".py")) for path in asked)
    asked.clear()
    assert open_model("someone/tiny").family == "sd"
    assert asked == []
    with pytest.raises(BadInput, match=r"someone/none can't be downloaded \("):
        hub.pull("someone/none", endpoint=endpoint)


def test_pull_without_weights(cache: Path, server: tuple[str, list[str]]) -> None:
    found = hub.pull("someone/tiny", weights=False, endpoint=server[0])
    assert not list(found.folder.rglob("*.safetensors")) and (found.folder / "tokenizer").is_dir()


def test_no_network(cache: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(BadInput, match="can't be downloaded") as caught:
        hub.pull("someone/tiny", endpoint=f"http://127.0.0.1:{port}")
    assert "\n" not in str(caught.value)
