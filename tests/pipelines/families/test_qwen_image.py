"""Qwen-Image and its edit models against diffusers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, every_technique, opened, relative
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.families import _qwen_edit
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.protocols import Conds, Denoiser, Pred, Predict
from sfumato.pipelines.text_to_image import TextToImage
from torch.nn import functional as F

Pair = tuple[Any, Any]
EDITS = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
SMALLER = 256
"""Times fewer pixels of the pictures to edit, so that the tests are quick."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    from diffusers import DiffusionPipeline

    root = tmp_path_factory.mktemp("qwen-image")
    found = {"QwenImagePipeline": opened(qwen_image(root / "QwenImagePipeline", "QwenImagePipeline"))}
    for name in EDITS:
        folder = qwen_image(root / name, name)
        shrink = images()
        shrink.save_pretrained(folder / "processor")
        pipe = DiffusionPipeline.from_pretrained(folder, processor=processor(shrink))
        pipe.set_progress_bar_config(disable=True)
        found[name] = open_model(folder), pipe
        pipe.text_encoder.register_forward_pre_hook(with_kinds, with_kwargs=True)
    return found


def with_kinds(encoder: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The kinds of the tokens, which diffusers leaves out: the pictures' tokens then have no rows and columns."""
    return args, {**given, "mm_token_type_ids": (given["input_ids"] == encoder.config.image_token_id).int()}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
        whole = module.calculate_dimensions
        monkeypatch.setattr(
            module, "calculate_dimensions", lambda area, ratio, whole=whole: whole(area // SMALLER, ratio)
        )
    areas = {name: tuple(area // SMALLER for area in pair) for name, pair in _qwen_edit.AREAS.items()}
    monkeypatch.setattr(_qwen_edit, "AREAS", areas)


def qwen_image(folder: Path, pipeline: str) -> Path:
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

    torch.manual_seed(0)
    tokenizer = tiny_models.qwen_tokenizer()
    net = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[-0.7, 0.2, 0.1, -0.4],
        latents_std=[0.28, 0.14, 0.23, 0.11],
    )
    parts = {
        "transformer": tiny_models.stirred(net, 0.2),
        "vae": vae,
        "text_encoder": tiny_models.stirred(vision_language(tokenizer)),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
    }
    tiny_models.save(folder, pipeline, parts)
    if pipeline in EDITS:
        file = folder / "model_index.json"
        index = json.loads(file.read_text())
        file.write_text(json.dumps({**index, "processor": ["transformers", "Qwen2VLProcessor"]}))
    return folder


MARKS = ("image_pad", "video_pad", "vision_start", "vision_end")


def vision_language(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    marks = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in MARKS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
        image_token_id=marks["image_pad"],
        video_token_id=marks["video_pad"],
        vision_start_token_id=marks["vision_start"],
        vision_end_token_id=marks["vision_end"],
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def images() -> Any:
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=64 * 64)


def processor(shrink: Any) -> Any:
    """The processor that diffusers takes, without its half of videos, which wants torchvision."""
    from transformers import Qwen2VLProcessor

    tokenizer = tiny_models.qwen_tokenizer()
    found = Qwen2VLProcessor.__new__(Qwen2VLProcessor)
    found.tokenizer, found.image_processor, found.chat_template = tokenizer, shrink, None
    for name in ("image_token", "video_token"):
        setattr(found, name, f"<|{name.removesuffix('_token')}_pad|>")
        setattr(found, f"{name}_id", tokenizer.convert_tokens_to_ids(getattr(found, name)))
    return found


@dataclass(frozen=True)
class Shortened:
    """The guidance of diffusers: each token of the guided velocity gets the length that it has without guidance."""

    scale: float

    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict:
        def predict(x: torch.Tensor, t: float) -> Pred:
            strong, weak = (pred.eps - pred.x0 for pred in denoise(x, t, conds.pos, conds.neg))
            guided = F.pixel_unshuffle(weak + self.scale * (strong - weak), 2)
            length = F.pixel_unshuffle(strong, 2).norm(dim=1, keepdim=True)
            v = F.pixel_shuffle(guided * length / guided.norm(dim=1, keepdim=True), 2)
            return Pred(x - t * v, x + (1 - t) * v)

        return Cfg(1.0)(denoise, conds) if self.scale == 1 else predict


def case(**more: Any) -> Case:
    return Case(
        guidance="true_cfg_scale",
        guide=Shortened,
        pack=lambda pipe, x: pipe._pack_latents(x, *x.shape),
        unpack=lambda pipe, x, width, height: pipe._unpack_latents(x, height, width, 8)[:, :, 0],
        **more,
    )


def picture(width: int, height: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator) / 255


def pil(picture: torch.Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((picture[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pairs: dict, scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pairs["QwenImagePipeline"], scale, count, size, case())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", EDITS)
def test_editing_is_diffusers(pairs: dict, name: str, scale: float, size: tuple[int, int]) -> None:
    shown = picture(50, 90)
    agree(*pairs[name], scale, 1, size, case(pictures={"image": shown}, ask={"image": pil(shown)}))


def test_two_pictures_are_diffusers(pairs: dict) -> None:
    shown = {"image": picture(50, 90), "image_2": picture(128, 96, 4)}
    asked = case(pictures=shown, ask={"image": [pil(one) for one in shown.values()]})
    agree(*pairs[EDITS[1]], 4.0, 1, (96, 64), asked)


@pytest.mark.parametrize("name", EDITS)
def test_two_edits_are_each_alone(pairs: dict, name: str) -> None:
    """Prompts of unlike length, each with a picture of its own."""
    model = pairs[name][0]
    prompts, shown = ["a", "a longer prompt"], torch.cat([picture(64, 64), picture(64, 64, 5)])
    x = SeededNoise.batch(0, 2, model.latent_shape(64, 64))()
    both = model.denoise(x, 0.5, model.attach(model.encode(prompts, key="pos"), {"image": shown}))[0]
    for i, prompt in enumerate(prompts):
        cond = model.attach(model.encode([prompt], key="pos"), {"image": shown[i : i + 1]})
        alone = model.denoise(x[i : i + 1], 0.5, cond)[0]
        torch.testing.assert_close(both.x0[i : i + 1], alone.x0, rtol=1e-4, atol=1e-5)


def test_what_a_run_is_told_counts(pairs: dict) -> None:
    ask = {"width": 64, "height": 64, "steps": 2}
    plain = TextToImage(pairs["QwenImagePipeline"][0])
    assert relative(plain("a blue cube", **ask).latents, plain("two", **ask).latents) > 1e-3
    for name in EDITS:
        model = pairs[name][0]
        first, other = ({"image": picture(64, 64, seed)} for seed in (3, 4))
        usual = TextToImage(model, pictures=first)("a", **ask).latents
        assert relative(TextToImage(model, pictures=first)("two", **ask).latents, usual) > 1e-3
        assert relative(TextToImage(model, pictures=other)("a", **ask).latents, usual) > 1e-3
        cond = model.encode(["a"], key="pos")
        seen = [model.attach(cond, shown).embeds["text"] for shown in (first, other)]
        assert relative(*seen) > 1e-4  # the text encoder looks at the picture


def test_limits(pairs: dict) -> None:
    plain, edit, plus = (pairs[name][0] for name in ("QwenImagePipeline", *EDITS))
    assert (plain.needs, plain.accepts) == ((), ())
    assert (edit.needs, edit.accepts) == (("image",), ())
    assert (plus.needs, plus.accepts) == (("image",), ("image_2", "image_3"))
    with pytest.raises(BadInput, match="needs the picture 'image'"):
        TextToImage(edit)("a", width=64, height=64, steps=1)
    long = "é" * 600
    assert plain.encode([long], key="pos").embeds["text"].shape[1] == plain.limits.tokens == 512
    assert torch.isfinite(plain.decode(torch.zeros(1, *plain.latent_shape(64, 64)))).all()
    assert plain.encode_image(picture(96, 64)).shape == (1, *plain.latent_shape(96, 64))


def test_every_technique_runs(pairs: Any) -> None:
    every_technique(pairs["QwenImagePipeline"][0])
