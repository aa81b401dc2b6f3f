"""Kandinsky 2.2 against diffusers: prior and decoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import NEGATIVE, PROMPT, STEPS, every_technique, hears, relative
from sfumato.pipelines.errors import BadWeights
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import TextToImage

SIZES = ((64, 64), (128, 64))


def kandinsky(folder: Path) -> Path:
    from diffusers import DDIMScheduler, PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, VQModel
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(0)
    text = tiny_models.clip_text(24, 77).config
    text.projection_dim = 24
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, embedding_dim=24, num_embeddings=77
    )
    torch.nn.init.normal_(prior.clip_std)
    parts = {
        "unet": UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            resnet_time_scale_shift="scale_shift",
            addition_embed_type="image",
            encoder_hid_dim_type="image_proj",
            encoder_hid_dim=24,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=8,
        ),
        "movq": VQModel(
            block_out_channels=(32, 32, 32, 32),  # spatial norms have 32 groups
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            vq_embed_dim=4,
            num_vq_embeddings=8,
            norm_type="spatial",
        ),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        "prior_prior": prior,
        "prior_text_encoder": CLIPTextModelWithProjection(text),
        "prior_image_encoder": eye(),
        "prior_tokenizer": tiny_models.tokenizer(77),
        "prior_scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
    }
    return tiny_models.save(folder, "KandinskyV22CombinedPipeline", parts)


def eye() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=24,
    )
    return CLIPVisionModelWithProjection(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kandinsky(tmp_path_factory.mktemp("kandinsky"))


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    from diffusers import KandinskyV22Pipeline

    pipe = KandinskyV22Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return open_model(folder), pipe


@pytest.fixture(scope="module")
def prior(folder: Path) -> Any:
    from diffusers import KandinskyV22PriorPipeline, PriorTransformer, UnCLIPScheduler
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    pipe = KandinskyV22PriorPipeline(
        PriorTransformer.from_pretrained(folder / "prior_prior"),
        CLIPVisionModelWithProjection.from_pretrained(folder / "prior_image_encoder"),
        CLIPTextModelWithProjection.from_pretrained(folder / "prior_text_encoder"),
        CLIPTokenizer.from_pretrained(folder / "prior_tokenizer"),
        UnCLIPScheduler.from_pretrained(folder / "prior_scheduler"),
        None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(
    pair: tuple[Any, Any], prior: Any, scale: float, count: int, size: tuple[int, int]
) -> None:
    model, pipe = pair
    width, height = size
    pos, none = prior(PROMPT, generator=torch.Generator().manual_seed(0), return_dict=False)
    ours = TextToImage(model, sampler=Ddim(), guidance=Cfg(scale))(
        PROMPT, width=width, height=height, steps=STEPS, seed=7, count=count
    )
    ask = {
        "image_embeds": pos.repeat(count, 1),
        "negative_image_embeds": none.repeat(count, 1),
        "guidance_scale": scale,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
    }

    def noise() -> torch.Tensor:
        return SeededNoise.batch(7, count, model.latent_shape(width, height))()

    latents = pipe(**ask, latents=noise(), output_type="latent").images
    pixels = torch.from_numpy(pipe(**ask, latents=noise(), output_type="np").images).permute(0, 3, 1, 2)
    assert relative(ours.latents, latents) < 1e-4
    assert float((ours.pixels - pixels).abs().max()) <= 1 / 255


def test_what_to_avoid(pair: tuple[Any, Any], prior: Any) -> None:
    """The embedding of a negative prompt is diffusers'; one row of an empty prompt is a black picture."""
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    _, want = prior(PROMPT, NEGATIVE, generator=generators, return_dict=False)
    _, black = prior(PROMPT, return_dict=False)
    got = pair[0].encode([NEGATIVE, ""], key="neg").embeds["image"]
    torch.testing.assert_close(got, torch.cat([want, black]), rtol=1e-4, atol=1e-5)
    assert relative(want, black) > 0.1


def test_prompts_and_defaults(pair: tuple[Any, Any]) -> None:
    model = pair[0]
    hears(model, 0.01, STEPS)
    both, one = model.encode(["b", PROMPT], key="pos"), model.encode([PROMPT], key="pos")
    torch.testing.assert_close(both.embeds["image"][1:], one.embeds["image"], rtol=1e-4, atol=1e-5)
    assert model.defaults == (64, 64, 30, 4.0, "dpmpp-2m", "uniform")


def test_halves_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyV22Pipeline"}))
    with pytest.raises(BadWeights, match="one half of Kandinsky"):
        open_model(tmp_path)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
