"""The door to checkpoints: what opens, and one clear sentence for everything that must not."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from sfumato.pipelines import loading
from sfumato.pipelines.card import read_card
from sfumato.pipelines.errors import BadInput, BadWeights, SfumatoError
from sfumato.pipelines.families._parts import quiet
from sfumato.pipelines.loading import builtin_folder, families, find_folder, open_model
from sfumato.pipelines.lookup import KINDS, technique, technique_ids, with_defaults
from sfumato.pipelines.weights import tensor_hash

NET = "transformer/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder_2/model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.flux(tmp_path_factory.mktemp("tiny") / "flux")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(SfumatoError) as caught:
        open_model(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert str(folder) in message
    return message


def test_opens_without_a_word_or_a_socket(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = open_model(folder)
    model.dropped("a " * 1000)
    assert model.name == "model"
    assert model.limits.tokens == tiny_models.WORDS
    out = capfd.readouterr()
    assert out.out == out.err == ""


def test_logs_are_as_before() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: (f / NET).write_bytes((f / NET).read_bytes()[:-9]), "truncated"),
    "empty": (lambda f: (f / NET).write_bytes(b""), "only 0 bytes"),
    "pickle": (lambda f: torch.save({"a": torch.ones(2)}, f / NET), "pickle or zip"),
    "bin only": (
        lambda f: (f / NET).rename(f / "transformer" / "diffusion_pytorch_model.bin"),
        "refused; convert",
    ),
    "no weights": (lambda f: (f / NET).unlink(), r"no \.safetensors"),
    "no folder": (lambda f: shutil.rmtree(f / "vae"), "folder is missing"),
    "no config": (lambda f: (f / "vae/config.json").unlink(), "cannot be read"),
    "bad config": (lambda f: (f / "vae/config.json").write_text("{"), "JSON cannot be read"),
    "config list": (lambda f: (f / "vae/config.json").write_text("[]"), "is a list"),
    "missing": (lambda f: edit_tensors(f / NET, lambda t: t.pop("proj_out.bias")), "lack proj_out.bias"),
    "missing text": (
        lambda f: edit_tensors(f / TEXT, lambda t: t.pop("encoder.final_layer_norm.weight")),
        "lack encoder.final_layer_norm.weight",
    ),
    "extra": (lambda f: edit_tensors(f / NET, lambda t: t.update(extra=torch.ones(2))), "have.* extra"),
    "extra text": (lambda f: edit_tensors(f / TEXT, lambda t: t.update(extra=torch.ones(2))), "have.* extra"),
    "shape": (
        lambda f: edit_tensors(f / NET, lambda t: t.update({"proj_out.bias": torch.ones(3)})),
        r"proj_out\.bias",
    ),
    "shape text": (
        lambda f: edit_tensors(
            f / TEXT, lambda t: t.update({"encoder.final_layer_norm.weight": torch.ones(3)})
        ),
        r"shape \[3\], config.json wants \[32\]",
    ),
    "huge config": (
        lambda f: edit_json(f / "text_encoder_2/config.json", d_ff=10**9),
        "wants [0-9,]+ weights",
    ),
    "huge net": (
        lambda f: edit_json(f / "transformer/config.json", num_layers=60),
        "lack",
    ),
    "wide net": (
        lambda f: edit_json(f / "transformer/config.json", joint_attention_dim=10**4),
        "do not fit config.json .*10000",
    ),
    "endless net": (
        lambda f: edit_json(f / "transformer/config.json", joint_attention_dim=10**12),
        "wants more memory than there is",
    ),
    "odd config": (lambda f: edit_json(f / "transformer/config.json", num_attention_heads="x"), "do not fit"),
    "quantised": (
        lambda f: edit_json(f / "transformer/config.json", quantization_config={"a": 1}),
        "quantised",
    ),
    "adapter": (lambda f: (f / "text_encoder/adapter_config.json").write_text("{}"), "adapter"),
    "class": (lambda f: edit_json(f / "model_index.json", vae=["diffusers", "VQModel"]), "vae is 'VQModel'"),
    "tokenizer": (lambda f: edit_json(f / "model_index.json", tokenizer=["os", "system"]), "not a tokenizer"),
    "tokenizer class": (
        lambda f: edit_json(f / "model_index.json", tokenizer=["transformers", "MyTokenizer"]),
        "not a tokenizer",
    ),
    "tokenizer file": (lambda f: (f / "tokenizer/tokenizer.json").write_text("{"), "tokenizer does not open"),
    "scheduler": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
        "scheduler is 'DDIMScheduler'",
    ),
    "shift": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", shift=-1),
        "settings cannot be used",
    ),
    "link out": (
        lambda f: ((f / NET).unlink(), (f / NET).symlink_to("/etc/passwd")),
        "links to /etc/passwd, outside the model folder",
    ),
    "folder out": (
        lambda f: (shutil.rmtree(f / "vae"), (f / "vae").symlink_to("/etc")),
        "outside the model folder",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage(folder: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(folder)
    assert re.search(message, refusal(folder))


def test_shards(folder: Path) -> None:
    """A sharded component opens to the same weights; without one shard it does not open."""
    whole = tensor_hash(folder)
    tensors = load_file(folder / NET)
    names = sorted(tensors)
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    place = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        save_file({n: tensors[n] for n in names if place[n] == shard}, folder / "transformer" / shard)
    (folder / NET).unlink()
    index = folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": place}))
    model = open_model(folder)
    assert tensor_hash(folder) == whole
    assert torch.equal(model.denoise.net.state_dict()["proj_out.bias"], tensors["proj_out.bias"])
    (folder / "transformer" / shards[0]).unlink()
    assert "shard is missing" in refusal(folder)


def test_variant_files_open(folder: Path) -> None:
    (folder / NET).rename(folder / "transformer/diffusion_pytorch_model.fp16.safetensors")
    (folder / TEXT).rename(folder / "text_encoder_2/model.fp16.safetensors")
    open_model(folder)


def test_names_of_older_libraries_open(folder: Path) -> None:
    """CLIP with its old prefix and position buffer, as in every checkpoint on the Hub."""
    file = folder / "text_encoder/model.safetensors"
    tensors = {f"text_model.{name}": value for name, value in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(tiny_models.WORDS)[None]
    before = open_model(folder).encode(["a red cube"], key="pos").embeds["pooled"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert torch.equal(open_model(folder).encode(["a red cube"], key="pos").embeds["pooled"], before)


def test_links_within_and_the_hub_cache(folder: Path, tmp_path: Path) -> None:
    """The Hub's cache keeps snapshots as links to blobs; links inside the folder are fine too."""
    repo = tmp_path / "models--someone--model"
    snapshot = repo / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (repo / "blobs").mkdir()
    (snapshot / NET).rename(repo / "blobs" / "123")
    (snapshot / NET).symlink_to(repo / "blobs" / "123")
    open_model(snapshot)
    (folder / NET).rename(folder / "net.safetensors")
    (folder / NET).symlink_to(folder / "net.safetensors")
    open_model(folder)


def test_pipes_are_refused(folder: Path) -> None:
    """A reader of one waits for ever."""
    os.mkfifo(folder / "vae" / "pipe.json")
    assert "is neither file nor folder" in refusal(folder)


def test_unknown_family(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="KandinskyPipeline")
    assert "'KandinskyPipeline', which is not supported; the nearest that are: " in refusal(folder)


def test_references(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "models" / "still-life")
    (tmp_path / "models" / "notes").mkdir()
    monkeypatch.setattr(loading, "MODELS", tmp_path / "models")
    assert loading.builtin_names() == ["still-life"]
    assert builtin_folder("still-life") == find_folder("still-life")
    assert open_model("still-life").name == "still-life"
    with pytest.raises(BadInput, match="called 'stil-life'; the nearest are still-life"):
        open_model("stil-life")
    with pytest.raises(
        BadInput, match=r"no file or folder 'a/b', and none was pulled; `sfumato models pull a/b`"
    ):
        open_model("a/b")
    with pytest.raises(BadInput, match=r"no model_index\.json"):
        open_model(tmp_path)
    with pytest.raises(BadInput, match="holds no tokenizer; give --parts"):
        open_model(folder / NET)
    with pytest.raises(BadInput, match="device = 'gpu' is unknown"):
        open_model(folder, device="gpu")
    for outside in ("..", "../still-life", "/nowhere"):
        with pytest.raises(BadInput):
            open_model(outside)


def test_no_builtins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MODELS", tmp_path / "none")
    with pytest.raises(BadInput, match="none are installed"):
        open_model("still-life")


def test_card(folder: Path) -> None:
    card = folder / "sfumato.json"
    rows = [[0.1, 0.2, 0.3]] * 17
    fields = {"name": "Still Life", "steps": 9, "width": 128, "height": 96, "guidance": 3, "sampler": "heun"}
    card.write_text(json.dumps({**fields, "licence": "CC0", "preview": rows}))
    model = open_model(folder)
    assert (model.name, model.info()["licence"]) == ("Still Life", "CC0")
    assert model.defaults == (128, 96, 9, 3, "heun", "flow-shift")
    assert model.projection(torch.zeros(1, 16, 4, 4)).shape == (1, 3, 32, 32)
    for field, value in (
        ("steps", 0),
        ("width", "128"),
        ("guidance", -1),
        ("preview", [[1, 2]]),
        ("name", 3),
    ):
        card.write_text(json.dumps({field: value}))
        with pytest.raises(BadWeights, match=rf"sfumato\.json: {field} = "):
            read_card(folder, 16)
    card.write_text('{"guidance": NaN}')
    assert "guidance" in refusal(folder)
    card.write_text('{"stps": 3}')
    assert "'stps' is unknown" in refusal(folder)
    card.write_text(json.dumps({"preview": rows[:4]}))
    assert "preview has 4 rows" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "score"}, "prediction_type is 'score'"),
        ({"rescale_betas_zero_snr": True}, "zero SNR"),
        ({"beta_schedule": "odd"}, "no noise table"),
        ({"timestep_spacing": "odd"}, "settings cannot be used"),
    ],
)
def test_sd_scheduler(tmp_path: Path, changes: dict, message: str) -> None:
    folder = tiny_models.stable_diffusion(tmp_path / "sd")
    edit_json(folder / "scheduler/scheduler_config.json", **changes)
    assert message in refusal(folder)


def test_every_family_is_found() -> None:
    names = {name for family in families() for name in family.pipelines}
    assert {"FluxPipeline", "StableDiffusionPipeline"} <= names


def test_lookup_finds_every_technique() -> None:
    for kind in KINDS:
        for id in technique_ids(kind):
            assert callable(technique(kind, id))
    assert callable(with_defaults("samplers", "ddim"))
    with pytest.raises(BadInput, match="nearest are ddim"):
        technique("samplers", "dim")
    with pytest.raises(BadInput, match="no folder of techniques"):
        technique("../app", "ddim")
