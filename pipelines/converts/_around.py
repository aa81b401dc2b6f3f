"""diffusers' blocks, with what stands around their exchanged layers computed in one pass with them.

Each is a subclass of the block that it stands for, which keeps its parts and their names and goes another way through
them. A block in which something is not as it expects is left as it is.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.activations import GEGLU, GELU, SwiGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.native.around import After, Gate, Norm
from ...kernels.quant.fused import Matrix, stored_rows
from ...kernels.quant.layers import Int8Conv2d, Int8Linear
from ...kernels.winograd import WinogradConv2d

AT_ONCE = 1 << 22
"""Bytes of a feed-forward's inner features that are held at a time: they stay in the processor's cache."""


class Gated(nn.Module):
    """A linear layer and the gate on its outputs, or on the half of them that multiplies the other."""

    proj: Int8Linear
    does: After

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.proj.after(hidden_states, self.does)


class GatedGEGLU(Gated, GEGLU):
    does = After("gelu", True)


class GatedSwiGLU(Gated, SwiGLU):
    does = After("silu", True)


class GatedGELU(Gated, GELU):
    @property
    def does(self) -> After:  # type: ignore[override]
        gate: Gate = "gelu_tanh" if self.approximate == "tanh" else "gelu"
        return After(gate)


class Feeding(FeedForward):
    """A gated layer and the one after it, some rows at a time."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        inner, outer = (layer for layer in self.net if not isinstance(layer, nn.Dropout))
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        out = flat.new_empty(len(flat), outer.out_features)
        rows = max(AT_ONCE // (4 * outer.in_features), 1)
        added = None if residual is None else residual.reshape(len(flat), 1, 1, -1)
        for first in range(0, len(flat), rows):
            part = slice(first, first + rows)
            after = After(residual=None if added is None else added[part])
            outer.product(stored_rows(inner(flat[part])), after=after, out=out[part])
        return out.view(*hidden_states.shape[:-1], -1)


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
        after = After(residual=kept.permute(0, 2, 3, 1), factor=1 / self.output_scale_factor)
        return second.after(hidden, after, _norm(self.norm2))


class Attending(AttnProcessor2_0):
    """Attention without what most layers lack: norms, masks, a division by one. `residual` is added at the end."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        norms = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
        plain = attn.rescale_output_factor == 1 and not attn.residual_connection and not any(norms)
        if not plain or attention_mask is not None or hidden_states.ndim != 3:
            out: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return out if residual is None else out + residual
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            part.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(seen), attn.to_v(seen))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        last, dropout = attn.to_out
        if residual is not None and _fast(last):
            return cast("Int8Linear", last).after(mixed, After(residual=residual))
        out = dropout(last(mixed))
        return out if residual is None else out + residual


class Joined(BasicTransformerBlock):
    """Attention, attention to the text, feed-forward; each adds its input as its last product leaves."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        own = (attention_mask, encoder_hidden_states, encoder_attention_mask, timestep)
        if cross_attention_kwargs or type(self.ff) is not Feeding or self._chunk_size is not None:
            out: Tensor = super().forward(
                hidden_states, *own, cross_attention_kwargs, class_labels, added_cond_kwargs
            )
            return out
        text = encoder_hidden_states if self.only_cross_attention else None
        x = _added(self.attn1, self.norm1(hidden_states), text, attention_mask, hidden_states)
        if self.attn2 is not None:
            x = _added(self.attn2, self.norm2(x), encoder_hidden_states, encoder_attention_mask, x)
        return self.ff(self.norm3(x), x)


def _added(attn: nn.Module, x: Tensor, text: Tensor | None, mask: Tensor | None, to: Tensor) -> Tensor:
    """to + what the layer makes of x; a patch may have given it another processor."""
    given = {"encoder_hidden_states": text, "attention_mask": mask}
    if type(attn.processor) is Attending:
        out: Tensor = attn(x, **given, residual=to)
        return out
    out = attn(x, **given) + to
    return out


class Straight(Transformer2DModel):
    """A UNet's transformer whose tokens go back to pixels without a copy, summed with its input as they leave."""

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
            out = cast("Int8Linear", self.proj_out).after(hidden_states, after)
            return out.view(batch_size, height, width, -1).permute(0, 3, 1, 2)
        pixels = hidden_states.view(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        return cast("Int8Conv2d", self.proj_out).after(pixels, after)


def gathered(net: nn.Module) -> nn.Module:
    """The network, with each block going the shorter way where its layers allow it."""
    for block in net.modules():
        if isinstance(block, Attention) and type(block.processor) is AttnProcessor2_0 and _fast(block.to_q):
            block.processor = Attending()
        shorter = _shorter(block)
        if shorter is not None:
            block.__class__ = shorter
    return net


def _shorter(block: nn.Module) -> type[nn.Module] | None:
    gates: dict[type, type[nn.Module]] = {GEGLU: GatedGEGLU, SwiGLU: GatedSwiGLU, GELU: GatedGELU}
    kind = type(block)
    if kind in gates:
        proj = block.proj
        # each half fills whole panels of 16 outputs
        return gates[kind] if _fast(proj) and (kind is GELU or proj.out_features % 32 == 0) else None
    if isinstance(block, FeedForward) and kind is FeedForward:
        layers = [layer for layer in block.net if not isinstance(layer, nn.Dropout) or layer.p]
        fits = len(layers) == 2 and type(layers[0]) in gates and _shorter(layers[0]) and _fast(layers[1])
        return Feeding if fits else None
    if isinstance(block, BasicTransformerBlock) and kind is BasicTransformerBlock:
        plain = block.norm_type == "layer_norm" and block.pos_embed is None
        return Joined if plain and _shorter(block.ff) is Feeding else None
    if isinstance(block, Upsample2D) and kind is Upsample2D:
        plain = block.norm is None and not block.use_conv_transpose and block.use_conv and block.interpolate
        return Repeated if plain and _fast(block.conv if block.name == "conv" else block.Conv2d_0) else None
    if isinstance(block, ResnetBlock2D) and kind is ResnetBlock2D:
        return Residual if _residual(block) else None
    if isinstance(block, Transformer2DModel) and kind is Transformer2DModel:
        return Straight if block.is_input_continuous and _fast(block.proj_out) else None
    return None


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
    if isinstance(layer, WinogradConv2d):
        return layer.native
    return isinstance(layer, Int8Linear | Int8Conv2d) and isinstance(layer.product, Matrix)
