"""The built-in models' architectures: small diffusers and transformers classes, so that plain diffusers opens them."""

from __future__ import annotations

from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
)

TEXT_TOKENS = 48
"""Longest prompt of the built-in models, in tokens with start and end marks."""
TEXT_WIDTH = 192
POOLED_WIDTH = 64
LANGUAGE_WIDTH = 160
"""Of the language model's states; another than the text encoders', so that a bridge has something to do."""


def vae() -> AutoencoderKL:
    """An 8x KL autoencoder with 16 latent channels; light at full resolution, where a CPU's time goes."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def flow_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=5,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def t5(vocab: int, pad: int, end: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocab,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=384,
            num_layers=2,
            num_heads=6,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=48,
            dropout_rate=0.0,
            feed_forward_proj="gelu",
            pad_token_id=pad,
            eos_token_id=end,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def clip(vocab: int, start: int, end: int, *, width: int, layers: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=width * 2,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=TEXT_TOKENS,
            hidden_act="gelu",
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def llama(vocab: int, start: int, end: int) -> LlamaForCausalLM:
    """A language model of 1.4 million weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=LANGUAGE_WIDTH,
            intermediate_size=448,
            num_hidden_layers=4,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=2 * TEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
            use_cache=False,
        )
    )


def unet() -> UNet2DConditionModel:
    """The layout of Stable Diffusion 1.5 for inpainting at a fifth of its width: a mask and a picture beside x."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=16 + 1 + 16,
        out_channels=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )
