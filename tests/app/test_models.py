"""`sfumato models ...`: names for models, what files are, shared folders, conversion; one sentence for bad input."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import original_names as original
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sfumato.app import registry
from sfumato.app.model_paths import read_model_paths
from sfumato.pipelines.errors import BadInput

FACTORS = (("A", (4, 16)), ("B", (16, 4)))
"""The sides of a LoRA of rank 4 on a layer of width 16."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def single(tiny, tmp_path, cache) -> Path:
    return original.save(
        tmp_path / "v1.safetensors",
        original.under(original.LDM, original.ldm_unet(original.weights(tiny, "unet"), 1)),
        original.under("first_stage_model.", original.ldm_vae(original.weights(tiny, "vae"))),
        original.under(
            "cond_stage_model.transformer.", original.clip(original.weights(tiny, "text_encoder"))
        ),
    )


def sentence(said, code=2) -> str:
    assert said.code == code and said.out == "" and len(said.err.strip().splitlines()) == 1, said
    return said.err


def test_add_use_verify_remove(sfumato, tiny, single):
    added = sfumato("models", "add", single, "--name", "mine", "--parts", tiny, "--json").data
    assert (added["kind"], added["role"], list(added["hashes"])) == ("sd15", "checkpoint", ["."])
    assert sfumato("models", "add", tiny).code == 0
    listed = sfumato("models", "--json").data
    assert (
        set(listed["remembered"]) == {"mine", "tiny-sd"}
        and listed == sfumato("--json", "models", "list").data
    )
    assert "mine" in sfumato("models").out
    said = sfumato(
        "generate", "x", "-m", "mine", "--size", "64", "--steps", "1", "--seed", "1", "-o", "a.png", "--json"
    )
    assert said.code == 0, said.err
    assert said.data["request"]["model"] == str(single) and said.data["request"]["parts"] == str(tiny)
    assert sfumato("replay", "a.png", "--check").code == 0
    assert sfumato("models", "verify", "mine").code == 0
    assert sfumato("models", "verify", "tiny-sd", "--json").data["files"] == 3
    assert "v1.safetensors" in sfumato("models", "remove", "mine").out and single.exists()
    assert "did you mean" in sentence(sfumato("models", "remove", "tiny-ds"))
    assert sfumato("models", "verify", single).code == 0


def test_a_remembered_lora_is_named_alone(sfumato, generate, tiny, tmp_path):
    rng, file = torch.Generator().manual_seed(0), tmp_path / "elsewhere" / "ink.safetensors"
    file.parent.mkdir()
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {f"{layer}.lora_{side}.weight": torch.randn(*shape, generator=rng) for side, shape in FACTORS}
    save_file(factors, file)
    assert sfumato("models", "add", file, "--json").data["role"] == "lora"
    found = []
    for lora in ("ink:0", "ink", f"{file}"):
        assert generate("-p", "a cube", "--seed", "1", "--lora", lora, "-o", "x.png").code == 0
        found.append(Image.open("x.png").tobytes())
    plain, named, by_path = found
    assert named == by_path != plain
    about = sfumato("models", "--json").data["remembered"]["ink"]["about"]
    assert (about["role"], about["dtype"]) == ("lora", "F32") and about["bytes"] > 0
    file.unlink()
    assert "sfumato models remove ink" in sentence(generate("-p", "a cube", "--lora", "ink", "-o", "d.png"))


def test_changes_are_noticed(sfumato, tiny, tmp_path, single):
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    for place in (folder, single):
        assert sfumato("models", "add", place).code == 0
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, metadata={"format": "pt", "note": "the tensors are the same"})
    assert sfumato("models", "verify", "copy").code == 0
    tensors["conv_in.bias"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    single.write_bytes(single.read_bytes()[:-5])
    said = sfumato("models", "verify", "copy")
    assert said.code == 1 and "unet has changed since it was added" in said.out
    report = sfumato("models", "verify", "v1", "--json")
    assert report.code == 1 and "truncated" in report.data["problems"][0]
    file.unlink()
    said = sfumato("models", "verify", "copy")
    assert said.code == 1 and "unet is missing" in said.out
    single.unlink()
    assert "which is gone; `sfumato models remove v1`" in sentence(sfumato("generate", "x", "-m", "v1"))
    assert sfumato("models", "remove", "v1").code == 0


def test_names(sfumato, tiny, tmp_path, monkeypatch, cache):
    from sfumato.app import inspection

    monkeypatch.setattr(inspection, "MODELS", tiny.parent)
    assert "is a built-in model" in sentence(sfumato("models", "add", tiny, "--no-hash"))
    assert "can't be a name" in sentence(sfumato("models", "add", tiny, "--no-hash", "--name", "a/b"))
    assert sfumato("models", "add", tiny, "--no-hash", "--name", "x", "-q").code == 0
    assert "no hash is remembered" in sfumato("models", "verify", "x").out
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    assert "stands for" in sentence(sfumato("models", "add", other, "--no-hash", "-q", "--name", "x"))
    assert "leave --parts out" in sentence(sfumato("models", "add", other, "--parts", tiny))
    registry.registry_file().write_text('{"models": 3}')
    assert "is damaged" in sentence(sfumato("models"))


def test_pulled_models_are_pinned(sfumato, tiny, cache):
    commit = "a" * 40
    snapshot = cache / "models--someone--tiny" / "snapshots" / commit
    shutil.copytree(tiny, snapshot)
    (cache / "models--someone--tiny/refs").mkdir()
    (cache / "models--someone--tiny/refs/main").write_text(commit)
    assert sfumato("models", "add", "someone/tiny", "--json").data["place"] == f"someone/tiny@{commit}"
    assert sfumato("models", "--json").data["pulled"] == [f"someone/tiny@{commit}"]
    run = ("--size", "64", "--steps", "1", "--dry-run", "--json")
    assert sfumato("generate", "x", "-m", "tiny", *run).data["request"]["model"] == f"someone/tiny@{commit}"
    assert sfumato("generate", "x", "-m", "someone/tiny", *run).code == 0
    assert "sfumato models pull a/b" in sentence(sfumato("models", "inspect", "a/b"))
    assert "sfumato models pull a/b" in sentence(sfumato("generate", "x", "-m", "a/b"))
    assert "no model of the Hub" in sfumato("models", "pull", "../x").err


def test_inspect(sfumato, tiny, single, tmp_path):
    data = sfumato("models", "inspect", single, "--json").data
    assert (data["role"], data["architecture"], data["family"]) == ("checkpoint", "sd15", "sd")
    assert data["hash"] is None and data["holds"] == ["network", "vae", "text encoders"]
    lora = {"lora_unet_a_attn2_to_k.lora_down.weight": torch.ones(16, 768, dtype=torch.float16)}
    save_file(
        lora, tmp_path / "l.safetensors", metadata={"ss_network_dim": "16", "ss_tag_frequency": "x" * 5000}
    )
    said = sfumato("models", "inspect", tmp_path / "l.safetensors")
    assert "lora for sd15, rank 16, changes unet" in said.out and "ss_network_dim: 16" in said.out
    assert "tag_frequency" not in said.out and "12,288 parameters (F16)" in said.out
    folder = sfumato("models", "inspect", tiny, "--json").data
    assert (folder["kind"], folder["family"]) == ("model", "sd")
    mixed = {"encoder.conv_in.weight": torch.ones(3), "decoder.conv_in.weight": torch.ones(2, 16).half()}
    save_file(mixed, tmp_path / "m.safetensors")
    assert "vae, sd3 or flux" in sfumato("inspect", tmp_path / "m.safetensors").out
    assert "91.4% F16" in sfumato("inspect", tmp_path / "m.safetensors").out
    (tmp_path / "x.ckpt").write_bytes(b"\x80")
    for command in (("models", "inspect"), ("models", "add"), ("inspect",)):
        assert f"sfumato models convert {tmp_path / 'x.ckpt'}" in sfumato(*command, tmp_path / "x.ckpt").err
    assert "does not exist" in sentence(sfumato("models", "inspect", "nothing/../x"))


def test_inspect_loads_nothing_heavy(single, tiny):
    code = (
        f"import sys\nfrom sfumato.app.cli import main\ncode = main(['models', 'inspect', {str(single)!r}])\n"
    )
    code += "sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


YAML = """
comfyui:
  base_path: {base}
  checkpoints: |
    models/checkpoints
    more
  loras: models/loras
  unet: models/unet
a1111:
  is_default: true
  base_path: $SHARED/webui
  checkpoints: models/Stable-diffusion
empty:
"""


@pytest.fixture
def shared(single, tmp_path, monkeypatch) -> Path:
    comfy, webui = tmp_path / "comfy", tmp_path / "shared/webui"
    for folder in (
        comfy / "models/checkpoints/sub",
        comfy / "models/loras",
        webui / "models/Stable-diffusion",
    ):
        folder.mkdir(parents=True)
    shutil.move(single, comfy / "models/checkpoints/sub/v1.safetensors")
    (webui / "models/Stable-diffusion/b.safetensors").write_bytes(b"")
    monkeypatch.setenv("SHARED", str(tmp_path / "shared"))
    file = tmp_path / "extra_model_paths.yaml"
    file.write_text(YAML.format(base=comfy))
    return file


def test_shared_folders(sfumato, shared, tiny, tmp_path, monkeypatch):
    checkpoint = tmp_path / "comfy/models/checkpoints/sub/v1.safetensors"
    run = ("--parts", tiny, "--size", "64", "--steps", "1", "--dry-run", "--json")
    Path("c.toml").write_text(f'model_paths = "{shared}"\n')
    for name in ("sub/v1", "sub/v1.safetensors"):
        said = sfumato("generate", "x", "-m", name, "-c", "c.toml", *run)
        assert said.code == 0, said.err
        assert said.data["request"]["model"] == str(checkpoint)
    monkeypatch.setenv("SFUMATO_MODEL_PATHS", str(shared))
    assert sfumato("generate", "x", "-m", "sub/v1", *run).code == 0
    found = sfumato("models", "--json").data["shared"]
    assert [Path(p).name for p in found["checkpoints"]] == ["b.safetensors", "v1.safetensors"]
    assert "sub/v1" in sfumato("generate", "x", "-m", "../sub/v1", *run).err
    folders = read_model_paths(shared)
    assert folders["checkpoints"][0].name == "Stable-diffusion" and folders["diffusion_models"] == []


@pytest.mark.parametrize(
    "text", ["[1]", "a: 3", "a:\n  checkpoints: 3", "a: [", "a:\n  base_path: [1]\n  x: y", "\x00"]
)
def test_bad_yaml(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"model_paths: .*x\.yaml") as caught:
        read_model_paths(file)
    assert "\n" not in str(caught.value)


def test_missing_yaml(sfumato, tiny, monkeypatch):
    monkeypatch.setenv("SFUMATO_MODEL_PATHS", "nowhere.yaml")
    assert "model_paths: 'nowhere.yaml' is not a file" in sentence(sfumato("models"))


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_convert(sfumato, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, "old.ckpt")
    said = sfumato("models", "convert", "old.ckpt", "-o", "new.safetensors", "--json")
    assert said.code == 0 and said.data["tensors"] == 1, said.err
    assert load_file("new.safetensors").keys() == {"a"}
    Path("evil.ckpt").write_bytes(pickle.dumps(Evil()))
    said = sfumato("models", "convert", "evil.ckpt", "-o", "evil.safetensors")
    assert "evil.ckpt: it " in sentence(said)
    assert not Path("ran").exists() and not Path("evil.safetensors").exists()
    assert "exists; remove it" in sentence(sfumato("models", "convert", "old.ckpt", "-o", "new.safetensors"))


def test_single_files_on_the_command_line(sfumato, single, tiny):
    said = sfumato("generate", "x", "-m", single, "--size", "64", "--steps", "1")
    assert "holds no tokenizer; give --parts FOLDER" in sentence(said)
    assert "leave --parts out" in sentence(sfumato("generate", "x", "-m", tiny, "--parts", tiny))
    said = sfumato("generate", "x", "-m", single, "--parts", tiny, "--size", "64", "--reuse", "0.1")
    assert "is a single file; take a folder, or choose a technique yourself" in sentence(said)
