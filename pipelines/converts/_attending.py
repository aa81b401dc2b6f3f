"""diffusers' transformer blocks around our layers: norms go before their products; gates, gains and sums with them."""

from __future__ import annotations

from typing import Any, NamedTuple

from diffusers.models.activations import GEGLU, GELU, SwiGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.dense import DenseConv2d, DenseLinear
from ...kernels.native.around import After, Gate
from ...kernels.native.products import LayerNorm, Linear
from ...kernels.quant.fused import Matrix
from ...kernels.quant.layers import Int8Conv2d, Int8Linear
from ...kernels.quant.winograd_int8 import Tiled

AT_ONCE = 1 << 22
"""Bytes of a feed-forward's inner features that are held at a time: they stay in the processor's cache."""


class Beside(NamedTuple):
    """What a block does around a layer: a norm before, a gain [G,O] after, a sum at the end."""

    norm: LayerNorm | None = None
    gain: Tensor | None = None
    residual: Tensor | None = None


NOTHING = Beside()


class Gated(nn.Module):
    """A linear layer and the gate on its outputs, or on the half of them that multiplies the other."""

    proj: Linear
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

    def forward(self, hidden_states: Tensor, beside: Beside = NOTHING) -> Tensor:
        inner, outer = (layer for layer in self.net if not isinstance(layer, nn.Dropout))
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        out = flat.new_empty(len(flat), outer.out_features)
        at_once = max(AT_ONCE // (4 * outer.in_features) // 8 * 8, 8)
        groups = 1 if beside.gain is None else len(beside.gain)
        share = len(flat) // groups
        for first in (group * share + row for group in range(groups) for row in range(0, share, at_once)):
            group = first // share
            part = slice(first, min(first + at_once, (group + 1) * share))
            norm, gain, residual = _part(beside, groups, group)
            first_product, second_product = inner.proj.product, outer.product
            held = first_product(first_product.rows(flat[part], norm), after=inner.does)
            added = None if residual is None else residual.reshape(len(flat), 1, 1, -1)[part]
            after = After(gain=gain, residual=added)
            second_product(second_product.rows(held.view(len(held), -1)), after=after, out=out[part])
        return out.view(*hidden_states.shape[:-1], -1)


def _part(beside: Beside, groups: int, group: int) -> Beside:
    """That of one share of the rows."""
    norm, gain, residual = beside
    if norm is not None and groups > 1:
        factor, shift = (None if t is None else t[group : group + 1] for t in (norm.factor, norm.shift))
        norm = norm._replace(factor=factor, shift=shift)
    return Beside(norm, None if gain is None else gain[group : group + 1], residual)


class Attending(AttnProcessor2_0):
    """Attention without what most layers lack: masks, norms of their own, a division by one."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        beside: Beside = NOTHING,
    ) -> Tensor:
        if not _plain(attn, hidden_states, attention_mask):
            out: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return out
        batch, tokens = hidden_states.shape[:2]
        rows = attn.to_q.product.rows(hidden_states.reshape(batch * tokens, -1), beside.norm)
        text = encoder_hidden_states
        seen = rows if text is None else attn.to_k.product.rows(text.reshape(-1, text.shape[-1]))
        q, k, v = (
            layer.product(rows).view(batch, -1, attn.heads, layer.out_features // attn.heads)
            for layer, rows in ((attn.to_q, rows), (attn.to_k, seen), (attn.to_v, seen))
        )
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        after = After(gain=beside.gain, residual=beside.residual)
        out = attn.to_out[0].after(mixed.transpose(1, 2).reshape(batch, tokens, -1), after)
        return out


def _plain(attn: Any, x: Tensor, mask: Tensor | None) -> bool:
    """Whether attention is its four products and softmax alone, all of them fast."""
    norms = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross)
    straight = attn.rescale_output_factor == 1 and not attn.residual_connection and not any(norms)
    straight = straight and mask is None and x.ndim == 3
    layers = (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0])
    return straight and all(map(fast, layers)) and len({type(layer) for layer in layers}) == 1


class Joined(BasicTransformerBlock):
    """Attention, attention to the text, feed-forward; each after its norm, and added to its input."""

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
        text = encoder_hidden_states if self.only_cross_attention else None
        usual = type(self.ff) is Feeding and self._chunk_size is None and not cross_attention_kwargs
        begun = self.begun(hidden_states, text, attention_mask, (timestep, class_labels)) if usual else None
        if begun is None:
            own = (attention_mask, encoder_hidden_states, encoder_attention_mask, timestep)
            out: Tensor = super().forward(
                hidden_states, *own, cross_attention_kwargs, class_labels, added_cond_kwargs
            )
            return out
        x, beside = begun
        if self.attn2 is not None:
            x = _added(self.attn2, self.norm2, x, encoder_hidden_states, encoder_attention_mask)
        return self.ff(x, beside._replace(residual=x))

    def begun(
        self, x: Tensor, text: Tensor | None, mask: Tensor | None, moment: tuple[Any, Any]
    ) -> tuple[Tensor, Beside] | None:
        """After attention, and what goes around the feed-forward; None if this must go the longer way."""
        return _added(self.attn1, self.norm1, x, text, mask), Beside(_norm(self.norm3))


class Adaptive(Joined):
    """Attention and feed-forward whose norms and gains follow the time (adaLN-Zero, arXiv:2212.09748)."""

    def begun(
        self, x: Tensor, text: Tensor | None, mask: Tensor | None, moment: tuple[Any, Any]
    ) -> tuple[Tensor, Beside] | None:
        if not _short(self.attn1, x, mask):
            return None
        first = self.norm1
        emb = first.emb(*moment, hidden_dtype=x.dtype)
        shift, scale, gain, ff_shift, ff_scale, ff_gain = first.linear(first.silu(emb)).chunk(6, 1)
        x = self.attn1(x, beside=Beside(LayerNorm(1 + scale, shift, first.norm.eps), gain, x))
        return x, Beside(LayerNorm(1 + ff_scale, ff_shift, self.norm3.eps), ff_gain)


def _added(
    attn: nn.Module, norm: nn.LayerNorm, x: Tensor, text: Tensor | None, mask: Tensor | None
) -> Tensor:
    """x + what the layer makes of it; a patch may have given it another processor."""
    if _short(attn, x, mask):
        out: Tensor = attn(x, encoder_hidden_states=text, beside=Beside(_norm(norm), residual=x))
        return out
    out = attn(norm(x), encoder_hidden_states=text, attention_mask=mask) + x
    return out


def _short(attn: Any, x: Tensor, mask: Tensor | None) -> bool:
    """Whether the layer computes what stands beside it too."""
    return type(attn.processor) is Attending and _plain(attn, x, mask)


def _norm(layer: nn.LayerNorm) -> LayerNorm:
    factor, shift = (None if t is None else t[None] for t in (layer.weight, layer.bias))
    return LayerNorm(factor, shift, layer.eps)


def fast(layer: object) -> bool:
    """Whether the layer computes in C++."""
    eight = isinstance(layer, Int8Linear | Int8Conv2d) and isinstance(layer.product, Matrix | Tiled)
    return eight or isinstance(layer, DenseLinear | DenseConv2d)
