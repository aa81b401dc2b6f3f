"""The transformer's forward pass with two taps that diffusers' own does not offer.

Image tokens may be left out after the joint blocks, and the hidden state after one single block is given back. With
neither in use it equals diffusers' forward pass bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

TAP = 1
"""Single block whose output is given back, counted from 0."""


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
