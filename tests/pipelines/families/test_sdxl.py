"""Stable Diffusion XL, its smaller kin, refiner and inpainting against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import PROMPT, SIZES, STEPS, Case, agree, every_technique, hears, opened, relative
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage

BASE, REFINER, INPAINT = (f"StableDiffusionXL{name}Pipeline" for name in ("", "Img2Img", "Inpaint"))


def sdxl(folder: Path, pipeline: str, unet: dict | None = None) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    config = tiny_models.clip_text(24, 77).config
    config.projection_dim = 20
    first, second = tiny_models.clip_text(16, 77), CLIPTextModelWithProjection(config)
    with (
        torch.no_grad()
    ):  # the layer before the last has no norm: without this its tokens are next to nothing
        for part in (first.get_input_embeddings(), second.get_input_embeddings(), second.text_projection):
            part.weight *= 30
    refines = pipeline == REFINER
    net = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": 24 if refines else 40,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 20 + 4 * (5 if refines else 6),
        "norm_num_groups": 8,
        "in_channels": 9 if pipeline == INPAINT else 4,
        **(unet or {}),
    }
    parts = {
        "unet": UNet2DConditionModel(**net),
        "vae": tiny_models.certain(tiny_models.vae(AutoencoderKL, channels=4, shift=None)),
        "text_encoder_2": second,
        "tokenizer_2": tiny_models.tokenizer(77),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    }
    tiny_models.amplify(parts["unet"], 4)
    none = {"text_encoder": [None, None], "tokenizer": [None, None]}
    if not refines:
        parts |= {"text_encoder": first, "tokenizer": tiny_models.tokenizer(77)}
    settings: dict = {"force_zeros_for_empty_prompt": not refines, **(none if refines else {})}
    if pipeline != BASE:
        settings["requires_aesthetics_score"] = refines
    return tiny_models.save(folder, pipeline, parts, settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(sdxl(tmp_path_factory.mktemp("sdxl"), BASE))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_base_is_diffusers(base: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*base, scale, count, size, Case())


VARIANTS = {
    "koala": (BASE, {"mid_block_type": None, "transformer_layers_per_block": [0, 3]}),
    "pruned": (
        BASE,
        {
            "transformer_layers_per_block": [[1], [2]],
            "reverse_transformer_layers_per_block": [[1, 2], [1, 1]],
        },
    ),
    "told": (BASE, {"time_cond_proj_dim": 16}),
    "refiner": (REFINER, {}),
    "inpaint": (INPAINT, {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_diffusers(name: str, tmp_path: Path) -> None:
    pipeline, unet = VARIANTS[name]
    pair = opened(sdxl(tmp_path, pipeline, unet))
    for scale, count, size in ((1.0, 1, SIZES[0]), (4.0, 2, SIZES[1])):
        ask: dict[str, Any] = {} if pipeline == BASE else {"image": picture(*size), "strength": 1.0}
        mine = {}
        if pipeline == INPAINT:
            mine = {"image": picture(*size), "mask": picture(*size)[:, :1].flip(-1)}
            ask["mask_image"] = mine["mask"]
        if name == "told":  # its scale goes in, and a second evaluation would be wrong
            ask["guidance_scale"], scale = 8.5, 1.0
        agree(*pair, scale, count, size, Case(ask=ask, pictures=mine))
    assert pair[0].needs == (("image", "mask") if pipeline == INPAINT else ())


def picture(width: int, height: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_no_negative_prompt_is_zeros(base: tuple[Any, Any]) -> None:
    model, pipe = base
    ours = TextToImage(model, sampler=Ddim(), guidance=Cfg(4.0))(
        [PROMPT, "b"], negative=["", "b"], width=64, height=64, steps=STEPS, seed=7
    )
    for row, (prompt, negative) in enumerate(((PROMPT, None), ("b", "b"))):
        want = pipe(
            prompt=prompt,
            negative_prompt=negative,
            guidance_scale=4.0,
            width=64,
            height=64,
            num_inference_steps=STEPS,
            latents=SeededNoise.batch(7 + row, 1, model.latent_shape(64, 64))(),
            output_type="latent",
        ).images
        assert relative(ours.latents[row : row + 1], want) < 1e-4
    empty = model.encode([""], key="pos").embeds
    assert all(float(value.abs().max()) > 0.1 for value in empty.values())


def test_words_and_size_matter(base: tuple[Any, Any]) -> None:
    hears(base[0], 0.01, STEPS)
    assert base[0].defaults == (128, 128, 30, 5.0, "dpmpp-2m", "uniform")
    model = base[0]
    cond = model.encode(["a"], key="pos")
    seen = []
    hook = model.denoise.net.add_time_proj.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    model.denoise(torch.zeros(1, 4, 8, 12), 0.5, cond)
    hook.remove()
    assert seen[0].tolist() == [64, 96, 0, 0, 64, 96]


def test_every_technique_runs(base: Any) -> None:
    every_technique(base[0])
