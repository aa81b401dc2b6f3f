"""diffusers' blocks, with what stands around their exchanged layers computed in one pass with them.

Each is a subclass of the block that it stands for, which keeps its parts and their names and goes another way through
them. A block in which something is not as it expects is left as it is.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.activations import GEGLU, GELU, SwiGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.normalization import AdaLayerNormZero
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.dense import DenseConv2d, DenseLinear
from ...kernels.native.around import After, Norm
from ...kernels.native.products import Linear, Matrix
from ...kernels.quant.layers import Int8Conv2d, Int8Linear
from ...kernels.winograd import WinogradConv2d
from ._attending import Adaptive, Attending, Feeding, GatedGEGLU, GatedGELU, GatedSwiGLU, Joined, fast

OURS = (Int8Linear, Int8Conv2d, DenseLinear, DenseConv2d, WinogradConv2d)
FEW = 32
"""Rows up to which a float32 layer goes faster as weights @ inputs than as inputs @ weights: 1.3 to 5 times here."""


class Slender(nn.Linear):
    """A layer that stays in float32. What hears the time has a row per picture, and torch's order then wastes most."""

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features).contiguous()
        if not 0 < len(rows) <= FEW:
            return super().forward(input)
        if len(rows) == 1:  # a product of matrices is faster than one with a vector, too
            rows = rows.repeat(2, 1)
        out = (
            self.weight @ rows.T
            if self.bias is None
            else torch.addmm(self.bias[:, None], self.weight, rows.T)
        )
        out = out.T[: input.numel() // self.in_features].contiguous()
        return out.view(*input.shape[:-1], self.out_features)


class Repeated(Upsample2D):
    """Each pixel twice by twice, then a convolution."""

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        conv = cast("Int8Conv2d | WinogradConv2d", self.conv if self.name == "conv" else self.Conv2d_0)
        if output_size is None or tuple(output_size) == (
            2 * hidden_states.shape[2],
            2 * hidden_states.shape[3],
        ):
            return conv.after(hidden_states, times=2)
        out: Tensor = conv(F.interpolate(hidden_states, size=output_size, mode="nearest"))
        return out


class Residual(ResnetBlock2D):
    """norm, silu, convolution, + time, norm, silu, convolution, + the input: four passes over the pixels."""

    over = False
    """Whether nobody needs the input afterwards, so that the output may take its place."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        shift = None
        if self.time_emb_proj is not None and temb is not None:
            shift = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
        first, second = (
            cast("Int8Conv2d | WinogradConv2d", self.conv1),
            cast("Int8Conv2d | WinogradConv2d", self.conv2),
        )
        hidden = first.after(input_tensor, After(shift=shift), _norm(self.norm1))
        kept = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        after = After(
            residual=kept.permute(0, 2, 3, 1),
            factor=1 / self.output_scale_factor,
            over=self.over or self.conv_shortcut is not None,
        )
        return second.after(hidden, after, _norm(self.norm2))


class Following(Residual):
    """In an autoencoder: what the block before made is for this one alone."""

    over = True


class Straight(Transformer2DModel):
    """A UNet's transformer: its norm goes with the product, its tokens back to pixels without a copy, and summed."""

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        product: Matrix = self.proj_in.product
        normed = product.pictures(hidden_states, _norm(self.norm)._replace(gate="none"))
        tokens = product(normed).flatten(1, 2)
        return tokens, tokens.shape[2]

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        after = After(residual=residual.permute(0, 2, 3, 1))
        if self.use_linear_projection:
            out = cast("Linear", self.proj_out).after(hidden_states, after)
            return out.view(batch_size, height, width, -1).permute(0, 3, 1, 2)
        pixels = hidden_states.view(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        return cast("Int8Conv2d | DenseConv2d", self.proj_out).after(pixels, after)


def gathered(net: nn.Module) -> nn.Module:
    """The network, with each block going the shorter way where its layers allow it; as it was if none was exchanged."""
    if not any(isinstance(layer, OURS) for layer in net.modules()):
        return net
    for block in net.modules():
        if isinstance(block, Attention) and type(block.processor) is AttnProcessor2_0 and fast(block.to_q):
            block.processor = Attending()
        shorter = _shorter(block)
        if shorter is not None:
            block.__class__ = shorter
    for level in net.modules():
        if isinstance(level, DownEncoderBlock2D | UpDecoderBlock2D):
            for block in level.resnets[1:]:
                if type(block) is Residual:
                    block.__class__ = Following
    return net


def _shorter(block: nn.Module) -> type[nn.Module] | None:
    gates: dict[type, type[nn.Module]] = {GEGLU: GatedGEGLU, SwiGLU: GatedSwiGLU, GELU: GatedGELU}
    kind = type(block)
    if kind is nn.Linear and block.weight.dtype == torch.float32:
        return Slender
    if kind in gates:
        proj = block.proj
        # each half fills whole panels of 16 outputs
        return gates[kind] if fast(proj) and (kind is GELU or proj.out_features % 32 == 0) else None
    if isinstance(block, FeedForward) and kind is FeedForward:
        layers = [layer for layer in block.net if not isinstance(layer, nn.Dropout) or layer.p]
        fits = len(layers) == 2 and type(layers[0]) in gates and _shorter(layers[0]) and fast(layers[1])
        return Feeding if fits else None
    if isinstance(block, BasicTransformerBlock) and kind is BasicTransformerBlock:
        return _transformer(block)
    if isinstance(block, Upsample2D) and kind is Upsample2D:
        plain = block.norm is None and not block.use_conv_transpose and block.use_conv and block.interpolate
        return Repeated if plain and _fast(block.conv if block.name == "conv" else block.Conv2d_0) else None
    if isinstance(block, ResnetBlock2D) and kind is ResnetBlock2D:
        return Residual if _residual(block) else None
    if isinstance(block, Transformer2DModel) and kind is Transformer2DModel:
        plain = block.is_input_continuous and isinstance(block.norm, nn.GroupNorm)
        return Straight if plain and fast(block.proj_in) and fast(block.proj_out) else None
    return None


def _transformer(block: BasicTransformerBlock) -> type[nn.Module] | None:
    kind = {"layer_norm": Joined, "ada_norm_zero": Adaptive}.get(block.norm_type)
    if kind is None:
        return None
    norms = [block.norm1, block.norm3] if block.attn2 is None else [block.norm1, block.norm2, block.norm3]
    if kind is Adaptive:
        norms[0] = block.norm1.norm if type(block.norm1) is AdaLayerNormZero else None
        bare = norms[0] is not None and norms[0].weight is None and block.norm3.weight is None
        kind = kind if bare and not block.attn1.is_cross_attention else None
    plain = block.pos_embed is None and _shorter(block.ff) is Feeding
    layers = all(
        type(norm) is nn.LayerNorm and (norm.weight is None or norm.weight.dtype == torch.float32)
        for norm in norms
    )
    return kind if plain and layers else None


def _residual(block: ResnetBlock2D) -> bool:
    timed = block.time_embedding_norm == "default" or block.time_emb_proj is None
    plain = timed and block.upsample is None and block.downsample is None
    norms = all(
        isinstance(norm, nn.GroupNorm) and norm.weight is not None and norm.weight.dtype == torch.float32
        for norm in (block.norm1, block.norm2)
    )
    gated = isinstance(block.nonlinearity, nn.SiLU) and not block.dropout.p
    return plain and norms and gated and _fast(block.conv1) and _fast(block.conv2)


def _norm(layer: nn.GroupNorm) -> Norm:
    return Norm(layer.num_groups, layer.weight, layer.bias, layer.eps, "silu")


def _fast(layer: object) -> bool:
    return layer.native if isinstance(layer, WinogradConv2d) else fast(layer)
