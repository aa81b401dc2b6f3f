"""FLUX.2 dev and klein against diffusers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import NEGATIVE, SIZES, Case, agree, every_technique, opened, relative
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.protocols import Cond
from sfumato.pipelines.text_to_image import Images, TextToImage
from torch.nn import functional as F

Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tiny_models.qwen_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=27, head_dim=8, **WIDTHS)
    return opened(flux2(tmp_path_factory.mktemp("klein"), Qwen3ForCausalLM(config), tokenizer))


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = tiny_models.qwen_tokenizer()
    tokenizer.add_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content[0].text }}<|im_end|>{% endfor %}"
    )
    words = {"model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 30, **WIDTHS}
    sight = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Mistral3Config(text_config=words, vision_config=sight, image_token_index=0)
    text_encoder = Mistral3ForConditionalGeneration(config)
    folder = flux2(tmp_path_factory.mktemp("dev"), text_encoder, tokenizer, guidance=True)
    _, pipe = opened(folder)
    pipe.tokenizer = pixtral(tokenizer)
    edit_index(folder, tokenizer=["transformers", "PixtralProcessor"])
    return open_model(folder), pipe


def edit_index(folder: Path, **entries: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


WIDTHS = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}


def pixtral(tokenizer: Any) -> Any:
    """What of PixtralProcessor reads prompts; the rest of it wants torchvision."""
    from transformers import ProcessorMixin

    class Reader(ProcessorMixin):
        def __init__(self, tokenizer: Any, chat_template: str) -> None:
            super().__init__(tokenizer, chat_template=chat_template)

    return Reader(tokenizer, tokenizer.chat_template)


def flux2(folder: Path, text_encoder: Any, tokenizer: Any, *, guidance: bool = False) -> Path:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    torch.manual_seed(0)
    net = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    parts = {
        "transformer": tiny_models.stirred(net),
        "vae": vae,
        "text_encoder": tiny_models.stirred(text_encoder),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }
    return tiny_models.save(folder, "Flux2Pipeline" if guidance else "Flux2KleinPipeline", parts)


def compare(pair: Pair, scale: float, count: int, size: tuple[int, int], *, embedded: float | None = None,
            shown: tuple[torch.Tensor, ...] = ()) -> Images:  # fmt: skip
    model, pipe = pair
    ask: dict[str, Any] = {"image": [pil(picture) for picture in shown]} if shown else {}
    if embedded is None and scale > 1:
        ask["negative_prompt_embeds"] = pipe.encode_prompt([NEGATIVE] * count)[0]
    if embedded is not None:
        ask["guidance_scale"] = embedded

    def standard(pipe: Any, x: torch.Tensor, width: int, height: int) -> torch.Tensor:
        if embedded is not None:  # dev gives them as tokens
            return x.mT.reshape(count, -1, height // 16, width // 16)
        spread = (pipe.vae.bn.running_var + pipe.vae.config.batch_norm_eps).sqrt()
        return (F.pixel_unshuffle(x, 2) - pipe.vae.bn.running_mean[:, None, None]) / spread[:, None, None]

    names = ("image", "image_2")
    case = Case(negative=False, ask=ask, unpack=standard, pictures=dict(zip(names, shown, strict=False)))
    return agree(model, pipe, scale, count, size, case)


def picture(width: int, height: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator) / 255


def pil(picture: torch.Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((picture[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("scale", "count", "size"),
    [(1.0, 1, SIZES[0]), (1.0, 2, SIZES[1]), (4.0, 1, SIZES[1]), (4.0, 2, SIZES[0])],
)
def test_klein_is_diffusers(klein: Pair, scale: float, count: int, size: tuple[int, int]) -> None:
    compare(klein, scale, count, size)


@pytest.mark.parametrize(("count", "size"), [(1, SIZES[0]), (2, SIZES[1])])
def test_dev_is_diffusers(dev: Pair, count: int, size: tuple[int, int]) -> None:
    compare(dev, 1.0, count, size, embedded=4.0)


def test_editing_is_diffusers(klein: Pair) -> None:
    one = compare(klein, 4.0, 1, (64, 64), shown=(picture(64, 96),))
    two = compare(klein, 4.0, 2, (64, 64), shown=(picture(64, 96), picture(80, 64, 4)))
    assert relative(one.latents, two.latents[:1]) > 1e-3


def test_dev_edits_too(dev: Pair) -> None:
    compare(dev, 1.0, 1, (64, 64), embedded=4.0, shown=(picture(64, 96),))


def test_codec_is_one_way_and_back(klein: Pair) -> None:
    model, pipe = klein
    image = picture(96, 64)
    latents = model.encode_image(image)
    assert latents.shape == (1, *model.latent_shape(96, 64)) == (1, 16, 4, 6)
    theirs = pipe._encode_vae_image(image * 2 - 1, None).detach()
    assert relative(latents, theirs) < 1e-5


def test_what_a_run_is_told_counts(klein: Pair, dev: Pair) -> None:
    for model, _ in (klein, dev):
        ask = {"width": 64, "height": 64, "steps": 2}
        draw = TextToImage(model)
        assert relative(draw("a blue cube", **ask).latents, draw("two", **ask).latents) > 1e-3
    x = SeededNoise.batch(0, 1, dev[0].latent_shape(64, 64))()
    cond = dev[0].encode(["a"], key="pos")
    more = Cond("pos", {**cond.embeds, "guidance": cond.embeds["guidance"] * 2})
    assert relative(dev[0].denoise(x, 0.5, more)[0].x0, dev[0].denoise(x, 0.5, cond)[0].x0) > 1e-4


def test_limits(klein: Pair, dev: Pair) -> None:
    before = len("<user\n")  # one token for the mark, then one for each byte
    assert klein[0].limits.tokens == 512 - before
    assert dev[0].limits.tokens == 512 - 2 - 1 - len(dev[1].system_message)
    with pytest.raises(BadInput, match="multiple of 16"):
        klein[0].attach(klein[0].encode(["a"], key="pos"), {"image": picture(72, 64)})


def test_the_shift_falls_with_the_steps(klein: Pair) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    model, pipe = klein
    for width, height, steps in ((64, 64, 4), (1024, 1024, 28), (2048, 2048, 50)):
        ours = model.default_schedule(width, height)(steps, model.denoise.path)
        sigmas = [1 - i / steps for i in range(steps)]
        pipe.scheduler.set_timesteps(sigmas=sigmas, mu=compute_empirical_mu(width * height // 256, steps))
        assert ours == pytest.approx(pipe.scheduler.sigmas.tolist(), abs=1e-5)


def test_distilled_klein_takes_few_steps(klein: Pair, tmp_path: Path) -> None:
    assert klein[0].defaults[2:4] == (50, 4.0)
    copy = tmp_path / "distilled"
    shutil.copytree(klein[1].name_or_path, copy)
    edit_index(copy, is_distilled=True)
    assert open_model(copy).defaults[2:4] == (4, 1.0)


def test_every_technique_runs(klein: Any) -> None:
    every_technique(klein[0])
