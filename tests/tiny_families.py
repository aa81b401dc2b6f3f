"""More tiny checkpoints, as those of `tiny_models`: families with parts that others do not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
import torch


def sd3(folder: Path) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=72,
        caption_projection_dim=16,
        pooled_projection_dim=56,
        out_channels=16,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    parts = {
        "transformer": tiny_models.stirred(net),
        "vae": tiny_models.vae(AutoencoderKL),
        "text_encoder": clip(24),
        "text_encoder_2": clip(32),
        "text_encoder_3": tiny_models.t5(72),
        "tokenizer": tiny_models.tokenizer(77),
        "tokenizer_2": tiny_models.tokenizer(77),
        "tokenizer_3": tiny_models.t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return tiny_models.save(folder, "StableDiffusion3Pipeline", parts)


def clip(width: int) -> torch.nn.Module:
    from transformers import CLIPTextModelWithProjection

    config = tiny_models.clip_text(width, 77).config
    config.projection_dim = width
    return CLIPTextModelWithProjection(config)


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


def hunyuan_dit(folder: Path, scheduler: Any, sizes: bool) -> Path:
    from diffusers import AutoencoderKL, HunyuanDiT2DModel
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    letters = [chr(code) for code in range(97, 123)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    bert = BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    parts = {
        "transformer": tiny_models.stirred(
            HunyuanDiT2DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                patch_size=2,
                sample_size=8,
                hidden_size=32,
                num_layers=4,
                mlp_ratio=2.0,
                cross_attention_dim=24,
                cross_attention_dim_t5=32,
                pooled_projection_dim=16,
                use_style_cond_and_image_meta_size=sizes,
            ),
            0.2,
        ),
        "vae": tiny_models.vae(AutoencoderKL, channels=4, shift=None),
        "text_encoder": BertModel(bert),
        "tokenizer": BertTokenizer(vocab={word: i for i, word in enumerate(words)}),
        "text_encoder_2": tiny_models.t5(),
        "tokenizer_2": tiny_models.t5_tokenizer(),
        "scheduler": scheduler,
    }
    return tiny_models.save(folder, "HunyuanDiTPipeline", parts)


def lumina2(folder: Path) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel

    torch.manual_seed(0)
    parts = {
        "transformer": Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=16,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(300, 32, 32),
            cap_feat_dim=32,
        ),
        "vae": tiny_models.vae(AutoencoderKL),
        "text_encoder": tiny_models.gemma(),
        "tokenizer": tiny_models.gemma_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }
    return tiny_models.save(folder, "Lumina2Pipeline", parts)


def lumina_next(folder: Path, channels: int) -> Path:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel

    torch.manual_seed(0)
    net = LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=channels,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=32,
    )
    for name, weight in net.named_parameters():
        if name.endswith("gate") or name == "pad_token":
            torch.nn.init.normal_(weight)
    parts = {
        "transformer": net,
        "vae": tiny_models.vae(AutoencoderKL, channels=channels, shift=None),
        "text_encoder": tiny_models.gemma("Gemma"),
        "tokenizer": tiny_models.gemma_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0),
    }
    return tiny_models.save(folder, "LuminaPipeline", parts)


def sana(folder: Path, scheduler: Any, pipeline: str = "SanaPipeline") -> Path:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    torch.manual_seed(0)
    few = pipeline == "SanaSprintPipeline"
    parts = {
        "transformer": SanaTransformer2DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=32,
            sample_size=8,
            guidance_embeds=few,
            qk_norm="rms_norm_across_heads" if few else None,
        ),
        "vae": AutoencoderDC(
            latent_channels=8,
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            encoder_layers_per_block=(1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            encoder_qkv_multiscales=((), (), (), ()),
            decoder_qkv_multiscales=((), (), (), ()),
            scaling_factor=0.41,
        ),
        "text_encoder": tiny_models.gemma(),
        "tokenizer": tiny_models.gemma_tokenizer(),
        "scheduler": scheduler,
    }
    return tiny_models.save(folder, pipeline, parts)
