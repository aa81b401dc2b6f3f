"""LoRAs against diffusers: the same files, weights and noise; merged, off, and gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import Case, agree, opened, relative
from safetensors.torch import save_file
from sfumato.pipelines.converts.lora import Lora
from sfumato.pipelines.converts.svdquant import SvdQuant
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.loras import Loras
from sfumato.pipelines.text_to_image import TextToImage

UNET = ("attn1.to_q", "attn2.to_k", "attn1.to_out.0", "ff.net.0.proj", "proj_in", "resnets.0.conv1")
TEXT = ("q_proj", "v_proj", "out_proj", "fc1")
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def factors(net: torch.nn.Module, ends: tuple[str, ...], seed: int, rank: int = 4) -> Factors:
    """Random factors, large enough to see, for the modules whose names end so."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in net.named_modules():
        if name.endswith(ends):
            weight = module.weight
            own = rank + name.endswith(("to_k", "fc1"))
            down = torch.randn(own, *weight.shape[1:], generator=rng) / weight[0].numel() ** 0.5
            up = torch.randn(len(weight), own, *[1] * (weight.ndim - 2), generator=rng) * 0.3
            found[name] = down, up
    assert found
    return found


def diffusers_names(parts: dict[str, Factors]) -> dict[str, torch.Tensor]:
    found = {}
    for part, modules in parts.items():
        for name, (down, up) in modules.items():
            found[f"{part}.{name}.lora_A.weight"] = down
            found[f"{part}.{name}.lora_B.weight"] = up
    return found


def kohya_names(parts: dict[str, Factors], alpha: float) -> dict[str, torch.Tensor]:
    starts = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
    found = {}
    for part, modules in parts.items():
        for name, (down, up) in modules.items():
            own = starts[part] + name.removeprefix("text_model.").replace(".", "_")
            found[f"{own}.lora_down.weight"], found[f"{own}.lora_up.weight"] = down, up
            found[f"{own}.alpha"] = torch.tensor(alpha)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home, model = tmp_path_factory.mktemp("loras"), open_model(folder)
    unet, clip = model.parts["unet"].net, model.parts["text_encoder"].net
    first = {"unet": factors(unet, UNET, 1), "text_encoder": factors(clip, TEXT, 2)}
    second = {"unet": factors(unet, UNET[1:4], 3, rank=2), "text_encoder": factors(clip, TEXT[:2], 4)}
    normed = {"unet": factors(unet, UNET[:1], 5)}
    dora = diffusers_names(normed) | {
        f"unet.{name}.lora_magnitude_vector": 1.3 * unet.get_submodule(name).weight.norm(dim=1)
        for name in normed["unet"]
    }
    states = {
        "dora": dora,
        "diffusers": diffusers_names(first),
        "kohya": kohya_names(first, 2.0),
        "second": kohya_names({"unet": second["unet"]}, 1.0),
    }
    for name, state in states.items():
        save_file(state, home / f"{name}.safetensors")
    return {name: home / f"{name}.safetensors" for name in states}


@pytest.fixture
def pair(folder: Path) -> tuple[Any, Any]:
    return opened(folder)


def latents(model: Any, prompt: str = "a red cube") -> torch.Tensor:
    return TextToImage(model)(prompt, width=64, height=64, steps=2, seed=1).latents


@pytest.mark.parametrize("name", ["diffusers", "kohya", "dora"])
def test_is_diffusers(name: str, pair: tuple[Any, Any], files: dict[str, Path]) -> None:
    model, pipe = pair
    before, loras = latents(model), Loras(model)
    loras.add("own", files[name])
    pipe.load_lora_weights(files[name].parent, weight_name=files[name].name, adapter_name="own")
    assert torch.equal(latents(model), before)
    loras.weigh({"own": 0.7})
    pipe.set_adapters(["own"], [0.7])
    assert relative(latents(model), before) > 0.02
    for scale, count, size in ((4.0, 1, (64, 64)), (1.0, 2, (96, 64))):
        agree(model, pipe, scale, count, size, Case())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_at_once(pair: tuple[Any, Any], files: dict[str, Path]) -> None:
    model, pipe = pair
    loras = Loras(model)
    for name in ("kohya", "second"):
        loras.add(name, files[name])
        pipe.load_lora_weights(files[name].parent, weight_name=files[name].name, adapter_name=name)
    loras.weigh({"kohya": 0.5, "second": -0.8})
    pipe.set_adapters(["kohya", "second"], [0.5, -0.8])
    agree(model, pipe, 4.0, 1, (64, 64), Case())
    both = latents(model)
    loras.weigh({"kohya": 0.5})
    assert relative(latents(model), both) > 0.005


def test_off_and_gone_leave_no_trace(folder: Path, files: dict[str, Path]) -> None:
    model = open_model(folder)
    nets = [part.net for part in model.parts.values()]
    modules = [list(net.modules()) for net in nets]
    traits = [set(vars(net)) for net in nets]
    before, info, loras = latents(model), model.info(), Loras(model)
    loras.add("a", files["kohya"])
    loras.add("b", files["diffusers"])
    assert loras.names == ("a", "b") and model.info() == info
    loras.weigh({"a": 1.0, "b": 0.0})
    acting = latents(model)
    assert not torch.equal(acting, before)
    loras.weigh({"a": 0.0, "b": 0})
    assert torch.equal(latents(model), before)
    loras.weigh({"a": 1.0})
    loras.remove("b")
    assert torch.equal(latents(model), acting)
    loras.remove("a")
    assert torch.equal(latents(model), before)
    for net, old, own in zip(nets, modules, traits, strict=True):
        assert all(a is b for a, b in zip(net.modules(), old, strict=True))
        assert set(vars(net)) == own and not any(p.requires_grad for p in net.parameters())


def test_merged_is_live(folder: Path, files: dict[str, Path]) -> None:
    model = open_model(folder)
    before, loras, weights = latents(model), Loras(model), {"a": 0.8, "b": -0.3}
    loras.add("a", files["kohya"])
    loras.add("b", files["second"])
    loras.weigh(weights)
    live = latents(model)
    loras.merge(weights)
    assert relative(latents(model), live) < 1e-4 and loras.names == ()
    assert not any(".lora_" in name for name, _ in model.denoise.net.named_parameters())
    with pytest.raises(BadInput, match="unmerge"):
        loras.add("c", files["kohya"])
    loras.unmerge()
    assert torch.equal(latents(model), before)
    loras.add("a", files["kohya"])


def test_convert(folder: Path, files: dict[str, Path]) -> None:
    converted, live = open_model(folder), open_model(folder)
    net = converted.denoise.net
    before = latents(converted)
    assert Lora(str(files["second"]), weight=0)(net) is net and torch.equal(latents(converted), before)
    Lora(str(files["second"]), weight=0.6)(net)
    loras = Loras(live)
    loras.add("x", files["second"])
    loras.weigh({"x": 0.6})
    assert relative(latents(converted), latents(live)) < 1e-4 < relative(latents(converted), before)


def test_on_packed_weights(folder: Path, files: dict[str, Path]) -> None:
    """The factors join the low-rank branch, or live beside; either way no packed weight changes."""
    joined, live, plain = open_model(folder), open_model(folder), open_model(folder)
    packing = SvdQuant(rank=2, inputs=0, bits=8, smallest=64)
    for model in (joined, live):
        packing(model.denoise.net)
    before = latents(joined)
    codes = {n: w.clone() for n, w in joined.denoise.net.named_parameters() if w.dtype == torch.int8}
    Lora(str(files["kohya"]), weight=0.6)(joined.denoise.net)
    assert len(codes) > 10
    assert all(torch.equal(joined.denoise.net.get_parameter(n), w) for n, w in codes.items())
    Lora(str(files["kohya"]), weight=0.6)(plain.denoise.net)
    assert relative(latents(joined), latents(plain)) < 0.1 * relative(before, latents(plain))
    loras = Loras(live)
    with pytest.raises(BadInput, match="is a packed convolution"):
        loras.add("x", files["kohya"])
    assert torch.equal(latents(live), before)
    loras.add("x", files["second"])
    loras.weigh({"x": 0.6})
    assert relative(latents(live), before) > 0.01
    with pytest.raises(BadInput, match="packed"):
        loras.merge({"x": 1.0})


def test_flux_and_saved_alphas(tmp_path: Path) -> None:
    """A transformer, peft's settings beside the file, and kohya's names for FLUX through diffusers."""
    model = open_model(tiny_models.flux(tmp_path / "flux"))
    before = latents(model)
    net = model.denoise.net
    given = factors(net, ("attn.to_q", "proj_mlp", "ff.net.2"), 1)
    state = {k.removeprefix("transformer."): v for k, v in diffusers_names({"transformer": given}).items()}
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file({f"base_model.model.{k}": v for k, v in state.items()}, folder / "adapter_model.safetensors")
    settings = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"proj_mlp": 2}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    loras = Loras(model)
    loras.add("p", folder)
    loras.weigh({"p": 0.5})
    after = latents(model)
    loras.remove("p")
    with torch.no_grad():
        for name, (down, up) in given.items():
            scale = 0.5 * (2 if name.endswith("proj_mlp") else 8) / 4
            net.get_submodule(name).weight += scale * up @ down
    assert relative(after, latents(model)) < 1e-4 < relative(after, before)
    kohya = {"lora_unet_single_blocks_0_linear2": (torch.randn(4, 160), torch.randn(32, 4) * 0.3)}
    state = {f"{k}.lora_down.weight": v[0] for k, v in kohya.items()}
    state |= {f"{k}.lora_up.weight": v[1] for k, v in kohya.items()}
    state |= {f"{k}.alpha": torch.tensor(2.0) for k in kohya}
    save_file(state, tmp_path / "k.safetensors")
    now = latents(model)
    loras.add("k", tmp_path / "k.safetensors")
    loras.weigh({"k": 1.0})
    scaled = latents(model)
    loras.remove("k")
    with torch.no_grad():
        down, up = kohya["lora_unet_single_blocks_0_linear2"]
        net.get_submodule("single_transformer_blocks.0.proj_out").weight += up @ down * 0.5
    assert relative(scaled, latents(model)) < 1e-4 < relative(scaled, now)


@pytest.mark.parametrize("kind", ["hada", "lokr", "lokr-full"])
def test_lycoris(kind: str, folder: Path, tmp_path: Path) -> None:
    """One linear and one convolutional layer, against the change in full."""
    model = open_model(folder)
    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    before, state, changes = latents(model), {}, {}
    for name, module in model.denoise.net.named_modules():
        if not name.endswith(("attn2.to_q", "resnets.0.conv1")):
            continue
        weight = module.weight
        rows, width = len(weight), weight[0].numel()
        own = f"lora_unet_{name.replace('.', '_')}"
        if kind == "hada":
            a, b, c, d = random(rows, 3), random(3, width), random(rows, 3), random(3, width)
            held = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
            change, scale = (a @ b) * (c @ d), 0.5
        else:
            w1, a, b = random(4, 2), random(rows // 4, 3), random(3, width // 2)
            change, scale = torch.kron(w1, a @ b), 0.5 if kind == "lokr" else 1.0
            split = {"lokr_w2_a": a, "lokr_w2_b": b} if kind == "lokr" else {"lokr_w2": a @ b}
            held = {"lokr_w1": w1, **split}
        state |= {f"{own}.{role}": 0.2 * t if role.endswith("1_a") else t for role, t in held.items()}
        factor = 0.2 if kind == "hada" else 1.0
        state[f"{own}.alpha"] = torch.tensor(1.5)
        changes[name] = (factor * scale * change).reshape(weight.shape)
    save_file(state, tmp_path / "x.safetensors")
    loras = Loras(model)
    loras.add("x", tmp_path / "x.safetensors")
    loras.weigh({"x": 0.05})
    after = latents(model)
    loras.remove("x")
    with torch.no_grad():
        for name, change in changes.items():
            model.denoise.net.get_submodule(name).weight += 0.05 * change
    assert relative(after, latents(model)) < 1e-4 < relative(after, before)


def sdxl(folder: Path) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    config = tiny_models.clip_text(24, 77).config
    config.projection_dim = 20
    parts = {
        "unet": UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=40,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=44,
            norm_num_groups=8,
        ),
        "vae": tiny_models.vae(AutoencoderKL, channels=4, shift=None),
        "text_encoder": tiny_models.clip_text(16, 77),
        "text_encoder_2": CLIPTextModelWithProjection(config),
        "tokenizer": tiny_models.tokenizer(77),
        "tokenizer_2": tiny_models.tokenizer(77),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    }
    with torch.no_grad():  # so that the layer before the last says something
        for name in ("text_encoder", "text_encoder_2"):
            parts[name].get_input_embeddings().weight *= 30
    return tiny_models.save(folder, "StableDiffusionXLPipeline", parts)


def test_sdxl_in_the_names_of_its_trainers(tmp_path: Path) -> None:
    """sgm's names for the UNet, te1 and te2 for the encoders; weights and length through both encoders."""
    model, pipe = opened(sdxl(tmp_path / "sdxl"))
    nets = {name: part.net for name, part in model.parts.items()}
    places = {
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k": (
            "unet",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        ),
        "lora_unet_output_blocks_0_0_in_layers_2": ("unet", "up_blocks.0.resnets.0.conv1"),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (
            "text_encoder",
            "encoder.layers.0.self_attn.q_proj",
        ),
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": (
            "text_encoder",
            "encoder.layers.0.self_attn.out_proj",
        ),
        "lora_te2_text_model_encoder_layers_0_self_attn_out_proj": (
            "text_encoder_2",
            "encoder.layers.0.self_attn.out_proj",
        ),
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": ("text_encoder_2", "encoder.layers.0.mlp.fc1"),
    }
    state = {}
    for own, (part, name) in places.items():
        end = name.partition("layers")[1] + name.partition("layers")[2] if part != "unet" else name
        ((down, up),) = factors(nets[part], (end,), 1).values()
        state |= {f"{own}.lora_down.weight": down, f"{own}.lora_up.weight": up}
        state[f"{own}.alpha"] = torch.tensor(2.0)
    save_file(state, tmp_path / "x.safetensors")
    before, loras = latents(model), Loras(model)
    found = loras.add("x", tmp_path / "x.safetensors")
    assert set(found.parts) == {"unet", "text_encoder", "text_encoder_2"} and found.unused == ()
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="x")
    loras.weigh({"x": 0.8})
    pipe.set_adapters(["x"], [0.8])
    agree(model, pipe, 5.0, 1, (64, 64), Case())
    assert relative(latents(model), before) > 0.005
    assert relative(latents(model, "a (red:1.8) cube"), latents(model)) > 1e-4
    embeds = model.encode(["red " * 100, "a"], key="pos").embeds
    assert embeds["text"].shape == (2, 154, 40) and embeds["mask"].sum(1).tolist() == [154, 77]


SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({f"{SDXL}.lora_down.weight": (4, 2048), f"{SDXL}.lora_up.weight": (640, 4)}, "for SDXL"),
        ({"unet.mid.x.lora_A.weight": (4, 8), "unet.mid.x.lora_B.weight": (8, 4)}, "none of its modules"),
        ({"text_encoder_2.x.lora_A.weight": (4, 8), "text_encoder_2.x.lora_B.weight": (8, 4)}, "for SDXL"),
        (
            {"unet.conv_in.lora_A.weight": (4, 5, 3, 3), "unet.conv_in.lora_B.weight": (16, 4, 1, 1)},
            "this model",
        ),
        ({"unet.conv_in.lora_A.weight": (4, 4, 3, 3)}, "one factor"),
        ({"encoder.weight": (4, 4)}, "no known kind"),
        ({"lora_unet_conv_in.diff": (16, 4, 3, 3)}, "not supported"),
        ({"lora_unet_conv_in.hada_w1_a": (16, 2)}, "no whole adapter"),
    ],
)
def test_refused(state: dict[str, tuple[int, ...]], said: str, folder: Path, tmp_path: Path) -> None:
    model, file = open_model(folder), tmp_path / "x.safetensors"
    save_file({name: torch.ones(shape) for name, shape in state.items()}, file)
    with pytest.raises(BadWeights, match=said) as error:
        Loras(model).add("x", file)
    assert str(file) in str(error.value) and "peft_config" not in vars(model.denoise.net)


def test_bad_files(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    loras = Loras(open_model(folder))
    (tmp_path / "x.pt").write_bytes(b"PK")
    (tmp_path / "x.safetensors").write_bytes(files["kohya"].read_bytes()[:-10])
    for name, said in (("x.pt", "can run code"), ("x.safetensors", "truncated"), ("", "holds neither")):
        with pytest.raises(BadWeights, match=said):
            loras.add("x", tmp_path / name)
    with pytest.raises(BadInput, match="no file"):
        loras.add("x", tmp_path / "gone.safetensors")
    loras.add("x", files["second"])
    for call in (lambda: loras.add("x", files["second"]), lambda: loras.weigh({"y": 1})):
        with pytest.raises(BadInput, match="loras"):
            call()
    with pytest.raises(BadInput, match="weight"):
        loras.weigh({"x": float("nan")})
