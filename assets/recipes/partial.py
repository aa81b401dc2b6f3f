"""Two ways to learn faster, as options of the flow recipe, and the forward pass that they share.

Deferred masking (MicroDiT, arXiv:2407.15811, section 2.2): the joint blocks see every token and mix the picture, then
a random share of its tokens is dropped before the single blocks, which do most of the work; the loss is taken on the
rest. Differs: the joint blocks are the patch mixer, and one draw of tokens serves a whole batch.

Representation alignment (REPA, arXiv:2410.06940, eq. 4): the hidden state after one single block is projected and drawn
towards the clean picture's representation. Differs: the representation is not a pretrained encoder's but the world's
own truth (`truth.py`), and the measure is the squared error, so that tokens where little is to be known weigh little.

Neutral: mask_share = 0 and align = 0; the forward pass then equals diffusers' own, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F

TAP = 1
"""Single block whose output is aligned, counted from 0."""


@dataclass(frozen=True)
class Faster:
    """`mask_share`: tokens left out of the single blocks, 0 to 0.9. `align`: weight of the alignment loss, 0 and up."""

    mask_share: float = 0.0
    align: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mask_share <= 0.9:
            raise ValueError(f"mask_share must be from 0 to 0.9, not {self.mask_share}")
        if not self.align >= 0:
            raise ValueError(f"align must be 0 or more, not {self.align}")

    def keep(self, tokens: int, rng: torch.Generator) -> Tensor | None:
        """Sorted indices of the tokens that stay, or None for all."""
        if self.mask_share == 0:
            return None
        stay = max(1, round(tokens * (1 - self.mask_share)))
        return torch.randperm(tokens, generator=rng, device=rng.device)[:stay].sort().values


class Prompt(NamedTuple):
    """What the text encoders made: `text` [B,T,D] and `pooled` [B,P]."""

    text: Tensor
    pooled: Tensor


class Passed(NamedTuple):
    """`v` [B,K,64] of the kept image tokens and `hidden` [B,K,D] after block `TAP`."""

    v: Tensor
    hidden: Tensor


def forward(
    net: FluxTransformer2DModel,
    x: Tensor,
    t: Tensor,
    prompt: Prompt,
    positions: Tensor,
    keep: Tensor | None = None,
) -> Passed:
    """FluxTransformer2DModel's forward pass over image tokens x [B,L,64] at positions [L,3], times t [B]."""
    image = net.x_embedder(x)
    moment = net.time_text_embed(t.to(image.dtype) * 1000, prompt.pooled)
    text = net.context_embedder(prompt.text)
    count = text.shape[1]
    rotary = net.pos_embed(torch.cat([positions.new_zeros(count, 3), positions]))
    for block in net.transformer_blocks:
        text, image = block(
            hidden_states=image, encoder_hidden_states=text, temb=moment, image_rotary_emb=rotary
        )
    if keep is not None:
        image = image[:, keep]
        rotary = tuple(torch.cat([part[:count], part[count:][keep]]) for part in rotary)
    hidden = image
    for number, block in enumerate(net.single_transformer_blocks):
        text, image = block(
            hidden_states=image, encoder_hidden_states=text, temb=moment, image_rotary_emb=rotary
        )
        hidden = image if number == TAP else hidden
    return Passed(net.proj_out(net.norm_out(image, moment)), hidden)


def misalignment(projected: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of [B,K,D]; 1 for a constant, since the truth has deviation 1."""
    return F.mse_loss(projected.float(), truth)
