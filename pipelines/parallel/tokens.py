"""Tokens of a transformer's streams, cut over processes: who has which, and what else of a block is cut with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..blocks import Block

PICTURE, TEXT, JOINT, EACH = "picture", "text", "joint", "each"


class Side(NamedTuple):
    """An argument of a block with one entry for each token."""

    of: str
    """Whose tokens: picture, text, joint (both in one sequence), or each (a pair: the picture's, then the text's)."""
    axis: int
    always: bool = True
    """False where one entry may serve all tokens, as one time for the whole picture."""


_ROPE = {"image_rotary_emb": Side(PICTURE, 0)}
SIDES: dict[str, dict[str, Side]] = {
    "AuraFlowJointTransformerBlock": {},
    "AuraFlowSingleTransformerBlock": {},
    "BasicTransformerBlock": {},
    "CogVideoXBlock": _ROPE,
    "CogView3PlusTransformerBlock": {},
    "CogView4TransformerBlock": _ROPE,
    "Flux2SingleTransformerBlock": _ROPE,
    "Flux2TransformerBlock": {"image_rotary_emb": Side(JOINT, 0)},
    "FluxSingleTransformerBlock": {"image_rotary_emb": Side(JOINT, 0)},
    "FluxTransformerBlock": {"image_rotary_emb": Side(JOINT, 0)},
    "HunyuanDiTBlock": _ROPE,
    "HunyuanVideoSingleTransformerBlock": _ROPE,
    "HunyuanVideoTransformerBlock": {"freqs_cis": Side(PICTURE, 0)},
    "JointTransformerBlock": {},
    "LTXVideoTransformerBlock": {"image_rotary_emb": Side(PICTURE, 1), "temb": Side(PICTURE, 1, False)},
    "Lumina2TransformerBlock": {"image_rotary_emb": Side(PICTURE, 1)},
    "QwenImageTransformerBlock": {
        "image_rotary_emb": Side(EACH, 0),
        "modulate_index": Side(PICTURE, 1, False),
    },
    "WanTransformerBlock": {"rotary_emb": Side(PICTURE, 1), "temb": Side(PICTURE, 1, False)},
    "ZImageTransformerBlock": {"freqs_cis": Side(PICTURE, 1), "noise_mask": Side(PICTURE, 1, False)},
}
"""Block class of diffusers -> what is cut beside its streams.

Classes that are not here can't be cut: Sana's attention is linear with convolutions over the picture, Mochi's drops
padded words by their place, Lumina-Next's sharpness depends on the number of tokens that it sees.
"""
PICTURE_LEADS = ("HunyuanVideoSingleTransformerBlock", "HunyuanVideoTransformerBlock")
"""Whose attention puts the picture's tokens before the text's; all others put the text first."""
CROSS = ("LTXVideoTransformerBlock.attn2", "WanTransformerBlock.attn2")
"""Attention to the text whose modules do not say that they are."""


def shares(count: int, size: int) -> list[int]:
    """How many of `count` each of `size` processes has: as even as can be, the first ones one more."""
    return [count // size + (rank < count % size) for rank in range(size)]


@dataclass(frozen=True)
class Cut:
    """How the streams of a stack are cut."""

    size: int
    rank: int
    lengths: Mapping[str, int]
    """Tokens of picture and text, where the stack has them as streams of their own."""
    text_leads: bool

    @classmethod
    def of(cls, block: Block, streams: Sequence[Tensor | None], size: int, rank: int) -> Cut:
        lengths = {}
        for place, stream in enumerate(streams):
            if stream is not None:
                lengths[PICTURE if place == block.hidden else TEXT] = stream.shape[1]
        return cls(size, rank, lengths, type(block.module).__name__ not in PICTURE_LEADS)

    @property
    def parts(self) -> tuple[str, ...]:
        """Of a joint sequence, in its order."""
        order = (TEXT, PICTURE) if self.text_leads else (PICTURE, TEXT)
        return tuple(part for part in order if part in self.lengths)

    def take(self, whole: Tensor, of: str, axis: int) -> Tensor:
        """This process's share of a tensor with one entry for each token."""
        if of != JOINT:
            return whole.split(shares(self.lengths[of], self.size), axis)[self.rank]
        pieces = whole.split([self.lengths[part] for part in self.parts], axis)
        own = [self.take(piece, part, axis) for piece, part in zip(pieces, self.parts, strict=True)]
        return torch.cat(own, axis)

    def side(self, value: Any, side: Side) -> Any:
        """An argument's share; tuples and lists are cut one by one, what has no entry for each token stays."""
        if side.of == EACH and isinstance(value, tuple):
            picture, text = value
            return self.side(picture, Side(PICTURE, side.axis)), self.side(text, Side(TEXT, side.axis))
        if isinstance(value, tuple | list):
            return type(value)(self.side(part, side) for part in value)
        if not isinstance(value, Tensor):
            return value
        whole = self.whole(side.of)
        if value.ndim <= side.axis or (not side.always and value.shape[side.axis] != whole):
            return value
        return self.take(value, side.of, side.axis)

    def whole(self, of: str) -> int:
        """Tokens in all."""
        return sum(self.lengths.values()) if of == JOINT else self.lengths[of]

    def locals(self, of: str) -> list[int]:
        """Tokens that each process has."""
        parts = self.parts if of == JOINT else (of,)
        rows = [shares(self.lengths[part], self.size) for part in parts]
        return [sum(row) for row in zip(*rows, strict=True)]

    def order(self, of: str) -> Tensor:
        """Where the tokens of all processes, one process after the other, stand in the whole sequence."""
        place = torch.arange(self.whole(of))
        return torch.cat(
            [
                Cut(self.size, rank, self.lengths, self.text_leads).take(place, of, 0)
                for rank in range(self.size)
            ]
        )

    def meant(self, tokens: int) -> str | None:
        """Whose tokens an attention with so many of them here is about."""
        for of in (JOINT, *self.lengths):
            if self.locals(of)[self.rank] == tokens:
                return of
        return None
