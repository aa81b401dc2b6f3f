"""Our path against plain diffusers on the same folder, noise and prompt, and what a family does by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.protocols import Cond
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage

SIZES = [(64, 64), (96, 64)]
STEPS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {
        "flux": tiny_models.flux(root / "flux"),
        "dev": tiny_models.flux(root / "dev", guidance_embeds=True, dynamic_shift=True),
        "sd": tiny_models.stable_diffusion(root / "sd"),
        "v": tiny_models.stable_diffusion(root / "v", prediction="v_prediction"),
        "sample": tiny_models.stable_diffusion(root / "sample", prediction="sample", channels=16),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: open_model(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    from diffusers import DiffusionPipeline

    pipes = {name: DiffusionPipeline.from_pretrained(folder) for name, folder in folders.items()}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    return pipes


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def same(ours: Any, latents: torch.Tensor, images: Any) -> None:
    assert relative(ours.latents, latents) < 1e-4
    assert float((ours.pixels - torch.from_numpy(images).permute(0, 3, 1, 2)).abs().max()) <= 1 / 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", ["flux", "flux cfg", "dev", "dev cfg"])
def test_flux_is_diffusers(models: dict, theirs: dict, case: str, count: int, size: tuple[int, int]) -> None:
    name, scale = case.split()[0], 3.0 if "cfg" in case else 1.0
    model, pipe, (width, height) = models[name], theirs[name], size
    noise = SeededNoise.batch(7, count, model.latent_shape(width, height))()
    ask = {
        "prompt": ["a red cube on a table"] * count,
        "negative_prompt": ["blurry"] * count,
        "true_cfg_scale": scale,
        "guidance_scale": 3.5,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
        "latents": pipe._pack_latents(noise, count, *noise.shape[1:]),
        "max_sequence_length": tiny_models.WORDS,
    }
    latents = pipe._unpack_latents(pipe(**ask, output_type="latent").images, height, width, 8)
    ours = TextToImage(model, guidance=Cfg(scale))(
        "a red cube on a table",
        negative="blurry",
        width=width,
        height=height,
        steps=STEPS,
        seed=7,
        count=count,
    )
    same(ours, latents, pipe(**ask, output_type="np").images)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", ["sd 1", "sd 5", "v 1", "v 5", "sample 5"])
def test_sd_is_diffusers(models: dict, theirs: dict, case: str, count: int, size: tuple[int, int]) -> None:
    name, scale = case.split()[0], float(case.split()[1])
    model, pipe, (width, height) = models[name], theirs[name], size
    ask = {
        "prompt": ["a red cube on a table"] * count,
        "negative_prompt": ["blurry"] * count,
        "guidance_scale": scale,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
        "latents": SeededNoise.batch(7, count, model.latent_shape(width, height))(),
    }
    ours = TextToImage(model, sampler=Ddim(), guidance=Cfg(scale))(
        "a red cube on a table",
        negative="blurry",
        width=width,
        height=height,
        steps=STEPS,
        seed=7,
        count=count,
    )
    latents = pipe(**ask, output_type="latent").images
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    images = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).detach().numpy()
    same(ours, latents, images)


def test_distilled_guidance(models: dict) -> None:
    model = models["dev"]
    assert model.defaults.guidance == 3.5
    ask = {"width": 64, "height": 64, "steps": 1}
    usual = TextToImage(model)("a", **ask).latents
    assert torch.equal(TextToImage(model, distilled=3.5)("a", **ask).latents, usual)
    assert not torch.equal(TextToImage(model, distilled=9.0)("a", **ask).latents, usual)
    with pytest.raises(BadInput, match="no embedded guidance"):
        TextToImage(models["flux"], distilled=3.5)("a", **ask)


@pytest.mark.parametrize("name", ["flux", "dev", "sd", "v", "sample"])
def test_conditions_together_are_conditions_alone(models: dict, name: str) -> None:
    model = models[name]
    x = SeededNoise.batch(0, 2, model.latent_shape(64, 64))()
    pos, neg = model.encode(["a red cube", "two"], key="pos"), model.encode([""], key="neg")
    both = model.denoise(x, 0.6, pos, neg)
    alone = [model.denoise(x, 0.6, cond)[0] for cond in (pos, neg)]
    path = model.denoise.path
    for ours, single in zip(both, alone, strict=True):
        torch.testing.assert_close(ours.x0, single.x0, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.eps, single.eps, rtol=1e-4, atol=1e-5)
        back = path.alpha(0.6) * ours.x0 + path.sigma(0.6) * ours.eps
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)


def test_context_tokens(models: dict) -> None:
    """A reference joins the sequence and changes the answer, alone or beside a condition without one."""
    model = models["flux"]
    x = SeededNoise.batch(0, 2, model.latent_shape(64, 64))()
    plain = model.encode(["a red cube"], key="pos")
    context = SeededNoise.batch(5, 1, model.latent_shape(96, 32))()
    edit = Cond("edit", {**plain.embeds, "context": context})
    with_context, without = model.denoise(x, 0.5, edit, plain)
    assert with_context.x0.shape == x.shape
    assert not torch.allclose(with_context.x0, without.x0)
    torch.testing.assert_close(without.x0, model.denoise(x, 0.5, plain)[0].x0, rtol=1e-4, atol=1e-5)
    other = Cond("edit", {**plain.embeds, "context": context.flip(-1)})
    assert not torch.allclose(model.denoise(x, 0.5, other)[0].x0, with_context.x0)


def test_context_positions_are_those_of_kontext(models: dict) -> None:
    seen = {}

    def spy(module: Any, args: Any, kwargs: dict) -> None:
        seen.update(kwargs)

    model = models["flux"]
    hook = model.denoise.net.register_forward_pre_hook(spy, with_kwargs=True)
    cond = Cond("e", {**model.encode(["a"], key="e").embeds, "context": torch.zeros(1, 16, 4, 8)})
    model.denoise(torch.zeros(1, 16, 6, 4), 0.5, cond)
    hook.remove()
    ids = seen["img_ids"]
    assert ids[:6].tolist() == [[0, r, c] for r in range(3) for c in range(2)]
    assert ids[6:].tolist() == [[1, r, c] for r in range(2) for c in range(4)]


PROMPTS = [
    "",
    " ",
    "a " * 10_000,
    "画家の静物画",
    "🎨🍎👩‍🎨",
    "é́\u200b\x00\n\t",
    "<|endoftext|> <pad>",
    "(x:1.3)",
    "ﷺ" * 200,
]


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_unusual_prompts(models: dict, name: str) -> None:
    model = models[name]
    cond = model.encode(PROMPTS, key="pos")
    length = 16 * 77 if name == "sd" else model.limits.tokens  # sixteen chunks of CLIP's
    assert cond.embeds["text"].shape[:2] == (len(PROMPTS), length)
    assert all(torch.isfinite(value).all() for value in cond.embeds.values())
    x = SeededNoise.batch(0, len(PROMPTS), model.latent_shape(32, 32))()
    assert torch.isfinite(model.denoise(x, 0.5, cond)[0].x0).all()


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_dropped_is_the_tail(models: dict, name: str) -> None:
    model = models[name]
    for short in ("", "a red cube", "red " * (model.limits.tokens - 2), "画家"):
        assert model.dropped(short) == ""
    fits = "red " * (model.limits.tokens - 2)
    assert model.dropped(fits + "tail of it") == "tail of it"
    assert len(model.dropped("a " * 10_000)) > 17_000


@pytest.mark.parametrize("prompts", [[], [3], [None], ["ok", "\ud800"]])
def test_impossible_prompts(models: dict, prompts: list) -> None:
    with pytest.raises(BadInput, match="prompt"):
        models["sd"].encode(prompts, key="pos")


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_codec(models: dict, name: str) -> None:
    model = models[name]
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    latents = model.encode_image(images)
    assert latents.shape == (2, *model.latent_shape(96, 64))
    assert torch.equal(latents, model.encode_image(images))
    back = model.decode(latents)
    assert back.shape == images.shape
    assert 0 <= float(back.min()) <= float(back.max()) <= 1
    with pytest.raises(ValueError, match="NaN"):
        model.decode(latents * float("nan"))
    with pytest.raises(BadInput, match="multiple of 8"):
        model.encode_image(torch.rand(1, 3, 60, 64))


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_half_precision(folders: dict, name: str) -> None:
    model = open_model(folders[name], dtype=torch.bfloat16)
    assert model.info()["dtype"] == "bfloat16"
    x = torch.randn(1, *model.latent_shape(64, 64), dtype=torch.bfloat16)
    answer = model.denoise(x, 0.5, model.encode(["a"], key="pos"))[0]
    assert answer.x0.dtype == answer.eps.dtype == torch.bfloat16
    assert torch.isfinite(TextToImage(model)("a", width=64, height=64, steps=2).pixels).all()


def test_info(models: dict) -> None:
    info = models["flux"].info()
    assert info["family"] == "flux"
    assert (
        set(info["hashes"])
        == set(info["parameters"])
        == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    )
    assert info["parameters"]["transformer"] == sum(
        p.numel() for p in models["flux"].denoise.net.parameters()
    )
    assert info["hashes"]["vae"] != models["sd"].info()["hashes"]["vae"]


def test_family_ends_are_finite(models: dict) -> None:
    for model in models.values():
        x = SeededNoise.batch(0, 1, model.latent_shape(64, 64))()
        cond = model.encode([""], key="pos")
        path = model.denoise.path
        for t in (path.start, path.last):
            assert all(torch.isfinite(part).all() for part in model.denoise(x, t, cond)[0])
