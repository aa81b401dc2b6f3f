"""Tiny checkpoints with seeded random weights, in the real diffusers layout, made when a test asks."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = 48
"""Text tokens of the tiny Flux (the tiny Stable Diffusion has CLIP's 77)."""


def flux(
    folder: Path,
    *,
    guidance_embeds: bool = False,
    dynamic_shift: bool = False,
    shift: float = 3.0,
    pipeline: str = "FluxPipeline",
    channels: int = 64,
) -> Path:
    """A FluxPipeline folder like the built-in `still-life`: 16 latent channels, byte-level BPE for both.

    Variants take other `channels` into the network.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    parts = {
        "transformer": FluxTransformer2DModel(
            in_channels=channels,
            out_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
        "vae": vae(AutoencoderKL),
        "text_encoder": clip_text(24, WORDS),
        "text_encoder_2": T5EncoderModel(
            T5Config(
                vocab_size=len(alphabet()),
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=1,
                num_heads=2,
                pad_token_id=0,
            )
        ),
        "tokenizer": tokenizer(WORDS),
        "tokenizer_2": tokenizer(WORDS),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic_shift),
    }
    return save(folder, pipeline, parts)


def stable_diffusion(
    folder: Path,
    *,
    prediction: str = "epsilon",
    channels: int = 4,
    pipeline: str = "StableDiffusionPipeline",
    unet: dict | None = None,
    replaced: dict | None = None,
    gain: float = 1.0,
) -> Path:
    """A StableDiffusionPipeline folder, or one in its layout.

    `prediction` is the scheduler's prediction_type, `unet` changes the UNet's config, `replaced` are other parts,
    `gain` makes conditions louder (see `amplify`).
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    parts = {
        "unet": UNet2DConditionModel(
            **{
                "sample_size": 8,
                "in_channels": channels,
                "out_channels": channels,
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "cross_attention_dim": 24,
                "attention_head_dim": 2,
                "norm_num_groups": 8,
                **(unet or {}),
            }
        ),
        "vae": vae(AutoencoderKL, channels=channels, shift=None),
        "text_encoder": clip_text(24, 77),
        "tokenizer": tokenizer(77),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
        ),
    }
    amplify(parts["unet"], gain)
    return save(folder, pipeline, parts | (replaced or {}))


def pixart(folder: Path, pipeline: str) -> Path:
    """A folder of PixArt alpha or sigma."""
    from diffusers import AutoencoderKL, DDIMScheduler, PixArtTransformer2DModel

    torch.manual_seed(0)
    parts = {
        "transformer": PixArtTransformer2DModel(
            sample_size=128 if pipeline == "PixArtAlphaPipeline" else 8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=12,
            num_attention_heads=2,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
        ),
        "vae": vae(AutoencoderKL, channels=4, shift=None),
        "text_encoder": t5(),
        "tokenizer": t5_tokenizer(),
        "scheduler": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    }
    return save(folder, pipeline, parts)


def amplify(unet, gain: float) -> None:
    """Scale a UNet's weights where conditions come in and where the answer goes out, so that they matter."""
    loud = (
        "conv_in.weight",
        "attn2.to_v.weight",
        "attn2.to_out.0.weight",
        "conv_out.weight",
        "cond_proj.weight",
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(loud):
                weight *= gain


def certain(vae, gain: float = 20.0):
    """The same VAE with a posterior of no width, so that samples are its mean, and with larger latents."""
    half = vae.config.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[:half] *= gain
        vae.quant_conv.weight[half:] = 0
        vae.quant_conv.bias[half:] = -30
    return vae


def vae(kind: type, *, channels: int = 16, shift: float | None = 0.1):
    return kind(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=64,
        scaling_factor=0.36,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )


def clip_text(width: int, tokens: int):
    from transformers import CLIPTextConfig, CLIPTextModel

    names = alphabet()
    config = CLIPTextConfig(
        vocab_size=len(names),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        bos_token_id=names["<|startoftext|>"],
        eos_token_id=names["<|endoftext|>"],
        pad_token_id=names["<|endoftext|>"],
    )
    return CLIPTextModel(config)


def t5(width: int = 32):
    """A T5 encoder for `t5_tokenizer`."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=200, d_model=width, d_kv=8, d_ff=48, num_layers=1, num_heads=2, pad_token_id=0)
    )


def t5_tokenizer(tokens: int = 512):
    """Every printable ASCII character is a piece."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=tokens)


def gemma(kind: str = "Gemma2", width: int = 32):
    """A Gemma or Gemma2 model for `gemma_tokenizer`."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return getattr(transformers, f"{kind}Model")(config)


def gemma_tokenizer():
    """Pieces b, d, l and r; a run of anything else is one unknown piece, which keeps long instructions short."""
    from transformers import GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "b", "d", "l", "r"]
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], add_bos_token=True)


def qwen_tokenizer():
    """Every byte is a token, and so is every special one; with a chat template like that of Qwen 3."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    marks = ["im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    special = ["<|endoftext|>", *(f"<|{mark}|>" for mark in marks)]
    names = [*special, *sorted(ByteLevel.alphabet())]
    found = Qwen2Tokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])
    found.add_tokens(special, special_tokens=True)
    found.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
    )
    return found


def stirred(net: torch.nn.Module, by: float = 0.1) -> torch.nn.Module:
    """The network with noise on every weight, so that gates which begin at zero are open."""
    with torch.no_grad():
        for weight in net.parameters():
            weight += by * torch.randn_like(weight)
    return net


def alphabet() -> dict[str, int]:
    """CLIP's byte alphabet, plain and word-ending, and its two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    names += ["<|startoftext|>", "<|endoftext|>"]
    return {name: i for i, name in enumerate(names)}


def tokenizer(tokens: int):
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=alphabet(), merges=[("r", "e"), ("re", "d</w>")], model_max_length=tokens)


def save(folder: Path, pipeline: str, parts: dict, settings: dict | None = None) -> Path:
    """The layout of save_pretrained, without the pipeline object (which costs seconds of imports)."""
    index: dict = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **(settings or {})}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "transformers" if type(part).__module__.startswith("transformers") else "diffusers"
        index[name] = [library, type(part).__name__]
    if pipeline == "StableDiffusionPipeline":
        index.update(
            safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False
        )
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder
