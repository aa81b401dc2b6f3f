"""Single files under the original names give what their diffusers folders give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import original_names as original
import pytest
import tiny_families
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from sfumato.pipelines.doors.architectures import architecture, known
from sfumato.pipelines.errors import BadInput, BadWeights, SfumatoError
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage
from sfumato.pipelines.weights import tensor_hash

PROMPT = "a red cube on a table"


def latents(model, prompt: str = PROMPT) -> torch.Tensor:
    made = TextToImage(model, guidance=Cfg(3.0))(
        prompt, negative="blurry", width=64, height=64, steps=2, seed=7
    )
    return made.latents


def bare(folder: Path, kept: tuple[str, ...] = ()) -> Path:
    """A copy without weights, but for the parts named."""
    copy = folder.with_name(f"{folder.name}-bare-{'-'.join(kept)}")
    if not copy.exists():
        shutil.copytree(folder, copy)
        for file in copy.rglob("*.safetensors"):
            if file.parent.name not in kept:
                file.unlink()
    return copy


def sd(home: Path) -> tuple[Path, Path]:
    folder = tiny_models.stable_diffusion(home / "sd")
    return folder, original.save(
        home / "v1.safetensors",
        original.under(original.LDM, original.ldm_unet(original.weights(folder, "unet"), 1)),
        original.under("first_stage_model.", original.ldm_vae(original.weights(folder, "vae"))),
        original.under(
            "cond_stage_model.transformer.", original.clip(original.weights(folder, "text_encoder"))
        ),
        {"model_ema.decay": torch.ones(()), "betas": torch.ones(4)},
        metadata={"modelspec.license": "CC0"},
    )


def sd2(home: Path) -> tuple[Path, Path]:
    folder = tiny_models.stable_diffusion(
        home / "sd2", prediction="v_prediction", unet={"use_linear_projection": True}
    )
    return folder, original.save(
        home / "v2.safetensors",
        original.under(original.LDM, original.ldm_unet(original.weights(folder, "unet"), 1)),
        original.under("first_stage_model.", original.ldm_vae(original.weights(folder, "vae"))),
        original.under(
            "cond_stage_model.model.", original.open_clip(original.weights(folder, "text_encoder"))
        ),
    )


def projecting(width: int, out: int) -> torch.nn.Module:
    from transformers import CLIPTextModelWithProjection

    config = tiny_models.clip_text(width, 77).config
    config.projection_dim = out
    return CLIPTextModelWithProjection(config)


def sdxl(home: Path) -> tuple[Path, Path]:
    from diffusers import EulerDiscreteScheduler

    folder = tiny_models.stable_diffusion(
        home / "sdxl",
        pipeline="StableDiffusionXLPipeline",
        unet={
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "use_linear_projection": True,
            "cross_attention_dim": 44,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 20 + 24,
        },
        replaced={
            "text_encoder_2": projecting(20, 20),
            "tokenizer_2": tiny_models.tokenizer(77),
            "scheduler": EulerDiscreteScheduler(steps_offset=1),
        },
    )
    return folder, original.save(
        home / "xl.safetensors",
        original.under(original.LDM, original.ldm_unet(original.weights(folder, "unet"), 1)),
        original.under("first_stage_model.", original.ldm_vae(original.weights(folder, "vae"))),
        original.under(
            "conditioner.embedders.0.transformer.", original.clip(original.weights(folder, "text_encoder"))
        ),
        original.under(
            "conditioner.embedders.1.model.", original.open_clip(original.weights(folder, "text_encoder_2"))
        ),
    )


def sd3(home: Path) -> tuple[Path, Path]:
    folder = tiny_families.sd3(home / "sd3")
    return folder, original.save(
        home / "v3.safetensors",
        original.under(original.LDM, original.sd3(original.weights(folder, "transformer"))),
        original.under("first_stage_model.", original.ldm_vae(original.weights(folder, "vae"))),
        *(
            original.under(f"text_encoders.{name}.transformer.", names(original.weights(folder, part)))
            for name, part, names in (
                ("clip_l", "text_encoder", original.clip),
                ("clip_g", "text_encoder_2", original.clip),
                ("t5xxl", "text_encoder_3", dict),
            )
        ),
    )


def flux(home: Path) -> tuple[Path, Path]:
    """The network alone, as it is published; all else comes from the parts folder."""
    folder = tiny_models.flux(home / "flux", guidance_embeds=True)
    return folder, original.save(
        home / "dev.safetensors", original.flux(original.weights(folder, "transformer"))
    )


MADE: dict[str, tuple[Callable[[Path], tuple[Path, Path]], tuple[str, ...]]] = {
    "sd": (sd, ()),
    "sd2": (sd2, ()),
    "sdxl": (sdxl, ()),
    "sd3": (sd3, ()),
    "flux": (flux, ("vae", "text_encoder", "text_encoder_2")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path, Path]]:
    """Folder, single file, and parts folder of each kind, made once."""
    home, found = tmp_path_factory.mktemp("single"), {}

    def get(name: str) -> tuple[Path, Path, Path]:
        if name not in found:
            make, kept = MADE[name]
            folder, file = make(home)
            found[name] = folder, file, bare(folder, kept)
        return found[name]

    return get


@pytest.mark.parametrize("name", MADE)
def test_the_file_is_the_folder(made, name: str) -> None:
    folder, file, parts = made(name)
    ours = open_model(file, parts=parts)
    expected = latents(open_model(folder))
    found = latents(ours)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert float((latents(ours, "a blue cone") - expected).norm() / expected.norm()) > 1e-3
    assert ours.name == file.stem
    assert tensor_hash(file) in ours.info()["hashes"].values()


def test_pictures_and_licence(made) -> None:
    folder, file, parts = made("sd")
    ours, theirs = open_model(file, parts=parts), open_model(folder)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours.decode(z), theirs.decode(z), atol=1e-6)
    assert ours.info()["licence"] == "CC0"
    half = open_model(file, parts=parts, dtype=torch.bfloat16)
    assert {p.dtype for p in half.denoise.net.parameters()} == {torch.bfloat16}


def test_diffusers_names_and_fp8(made, tmp_path: Path) -> None:
    """A network alone in diffusers' own names opens too, and so do weights stored in 8 bits."""
    folder, _, parts = made("flux")
    tensors = original.weights(folder, "transformer")
    expected = latents(open_model(folder))
    file = original.save(tmp_path / "net.safetensors", tensors)
    assert torch.equal(latents(open_model(file, parts=parts)), expected)
    small = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for n, t in tensors.items()}
    found = latents(open_model(original.save(tmp_path / "fp8.safetensors", small), parts=parts))
    assert found.isfinite().all() and float((found - expected).norm() / expected.norm()) < 0.5


def test_what_the_header_says_wins(made, tmp_path: Path) -> None:
    """The network of schnell with the parts of dev: no guidance, and no shift."""
    _, file, parts = made("flux")
    tensors = {n: t for n, t in load_file(file).items() if not n.startswith("guidance_in.")}
    model = open_model(original.save(tmp_path / "schnell.safetensors", tensors), parts=parts)
    assert "guidance" not in model.encode(["x"], key="pos").embeds
    assert model.defaults.steps == 4
    xl, xl_file, xl_parts = made("sdxl")
    marked = load_file(xl_file) | {"v_pred": torch.ones(()), "ztsnr": torch.ones(())}
    turned = open_model(original.save(tmp_path / "v.safetensors", marked), parts=xl_parts)
    path = turned.denoise.path
    assert path.alpha(1.0) < 1e-6 < open_model(xl).denoise.path.alpha(1.0)


def refusal(file: Path, parts: Path | None) -> str:
    with pytest.raises(SfumatoError) as caught:
        open_model(file, parts=parts)
    message = str(caught.value)
    assert "\n" not in message and "sfumato-" not in message and len(message) < 700
    return message


def test_missing_parts(made, tmp_path: Path) -> None:
    _, file, parts = made("sd")
    assert "holds no tokenizer; give --parts FOLDER" in refusal(file, None)
    assert "is a FluxPipeline, v1.safetensors is sd15" in refusal(file, made("flux")[2])
    without = Path(shutil.copytree(parts, tmp_path / "without"))
    shutil.rmtree(without / "tokenizer")
    assert "holds no tokenizer; give a folder of sd15" in refusal(file, without)
    tensors = {n: t for n, t in load_file(file).items() if not n.startswith("first_stage_model.")}
    novae = original.save(tmp_path / "novae.safetensors", tensors)
    assert "novae.safetensors holds no vae, and neither does" in refusal(novae, parts)
    with pytest.raises(BadInput, match="leave --parts out"):
        open_model(made("sd")[0], parts=parts)
    with pytest.raises(BadInput, match="is a file; give a model folder"):
        open_model(file, parts=file)


def test_parts_of_another_size(made, tmp_path: Path) -> None:
    """The known config of the real model is far larger than a tiny file; another shape is named."""
    _, file, parts = made("sd")
    other = Path(shutil.copytree(parts, tmp_path / "other"))
    (other / "unet/config.json").unlink()
    assert "the config wants 859,520,964 weights" in refusal(file, other)
    config = json.loads((parts / "unet/config.json").read_text())
    (other / "unet/config.json").write_text(json.dumps({**config, "cross_attention_dim": 32}))
    assert "has the shape [16, 24], the config wants [16, 32]" in refusal(file, other)
    (other / "unet/config.json").write_text(json.dumps({**config, "layers_per_block": "x"}))
    assert "do not fit the config" in refusal(file, other)


def test_other_files(made, tmp_path: Path) -> None:
    folder, file, parts = made("sd")
    tensors = load_file(file)

    def refused(name: str, tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, tmp_path / name)
        return refusal(tmp_path / name, parts)

    assert "holds a vae for sd or sdxl, not a model" in refused(
        "vae.safetensors", original.ldm_vae(original.weights(folder, "vae"))
    )
    assert "holds a lora" in refused("lora.safetensors", {"lora_unet_x.lora_down.weight": torch.ones(4, 8)})
    assert "holds nothing that is known" in refused("odd.safetensors", {"a": torch.ones(3, 3)})
    scaled = tensors | {f"{original.LDM}out.2.scale_weight": torch.ones(1)}
    assert "quantised with scales" in refused("scaled.safetensors", scaled)
    marked = scaled | {f"{original.LDM}out.2.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}')).byte()}
    assert "is in nvfp4; float8_e4m3fn" in refused("marked.safetensors", marked)
    fewer = {n: t for n, t in tensors.items() if "time_embed.0" not in n}
    assert "lacks time_embedding.linear_1.bias and 1 more" in refused("fewer.safetensors", fewer)
    fewer = {n: t for n, t in tensors.items() if "ln_final" not in n and "final_layer_norm" not in n}
    assert "missing keys" in refused("text.safetensors", fewer)
    (tmp_path / "x.ckpt").write_bytes(b"\x80")
    assert f"sfumato models convert {tmp_path / 'x.ckpt'}" in refusal(tmp_path / "x.ckpt", parts)
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert "is no model; give a folder" in refusal(tmp_path / "x.zip", parts)
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-3])
    assert "truncated" in refusal(tmp_path / "cut.safetensors", parts)


def test_names_that_are_paths_stay_inside(made, tmp_path: Path) -> None:
    _, file, parts = made("sd")
    odd = tmp_path / "...safetensors"
    shutil.copyfile(file, odd)
    assert open_model(odd, parts=parts).name == "model"
    linked = Path(shutil.copytree(parts, tmp_path / "linked"))
    (linked / "tokenizer/vocab.txt").symlink_to("/etc/passwd")
    with pytest.raises(BadWeights, match="links to /etc/passwd"):
        open_model(file, parts=linked)


WEIGHTS = {
    ("sd15", "unet"): 859_520_964,
    ("sd15", "vae"): 83_653_863,
    ("sd15", "text_encoder"): 123_060_480,
    ("sd2", "unet"): 865_910_724,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684,
    ("sdxl", "text_encoder_2"): 694_659_840,
    ("sd3", "transformer"): 2_028_328_000,
    ("sd3", "vae"): 83_819_683,
    ("sd35-medium", "transformer"): 2_243_171_520,
    ("sd35-large", "transformer"): 8_056_627_520,
    ("sd3", "text_encoder_3"): 4_762_310_656,
    ("flux-dev", "transformer"): 11_901_408_320,
    ("flux-schnell", "transformer"): 11_891_178_560,
}
"""Parameters of the published models."""


@pytest.mark.slow
@pytest.mark.parametrize(("id", "part"), WEIGHTS, ids=str)
def test_known_configs_are_those_of_the_published_models(id: str, part: str) -> None:
    import diffusers
    import transformers

    facts = architecture(id).parts[part]
    cls = getattr({"diffusers": diffusers, "transformers": transformers}[facts.library], facts.kind)
    with torch.device("meta"):
        if facts.library == "transformers":
            net = cls(cls.config_class.from_dict(facts.config))
        else:
            net = cls.from_config(facts.config)
    assert sum(p.numel() for p in net.parameters()) == WEIGHTS[id, part]


def test_every_known_architecture_has_its_parts() -> None:
    for id in known():
        facts = architecture(id)
        assert facts.parts[facts.network].is_network and facts.parts["scheduler"].config
        assert any(part.is_tokenizer for part in facts.parts.values())


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise", "int8_blockwise"])
def test_comfyuis_scales(kind: str, marked: bool, made, tmp_path: Path) -> None:
    """In the header, or in a tensor beside each weight; both give the weight times its scale."""
    _, file, parts = made("sd")
    tensors, wanted, layers = load_file(file), load_file(file), {}
    for name in [n for n in tensors if n.endswith((".to_q.weight", ".proj.weight")) and tensors[n].ndim == 2]:
        layer, w = name.removesuffix(".weight"), tensors[name]
        spec = {"format": kind}
        if kind == "float8_e4m3fn":
            scale = whole = w.abs().max() / 448
            stored = (w / scale).to(torch.float8_e4m3fn)
        elif kind == "int8_tensorwise":
            scale = w.abs().amax(1) / 127
            whole = scale[:, None]
            stored = (w / whole).round().to(torch.int8)
        else:
            spec["group_size"] = 8
            scale = torch.rand(w.shape[0] // 8, w.shape[1] // 8) + 0.01
            whole = scale.repeat_interleave(8, 0).repeat_interleave(8, 1)
            stored = (w / whole).round().clamp(-127, 127).to(torch.int8)
        tensors |= {name: stored, f"{layer}.weight_scale": scale.clone()}
        wanted[name] = stored.float() * whole
        layers[layer] = spec
        if marked:
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(spec).encode())).byte()
    assert len(layers) > 2
    said = (
        {} if marked else {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    )
    save_file(tensors, tmp_path / "scaled.safetensors", metadata=said)
    save_file(wanted, tmp_path / "wanted.safetensors")
    ours, plain = (open_model(tmp_path / f"{name}.safetensors", parts=parts) for name in ("scaled", "wanted"))
    assert torch.equal(latents(ours), latents(plain))
