"""Prompts of any length, with weights and learned words, through CLIP text encoders.

What `prompts.parse` finds is encoded in chunks of 75 tokens, each with its own beginning and end; BREAK begins a new
one. A weight multiplies what the encoder says about its tokens, and the mean of the chunk is then restored, as A1111
does (there over a batch, here per picture, so that a batch changes nothing). A prompt of one chunk without syntax
gives exactly what the encoder says by itself. The pooled vector is the first chunk's, and knows no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..prompts import Span, parse
from ._common import Text
from ._parts import quiet

MOST_CHUNKS = 16


class Token(NamedTuple):
    id: int
    weight: float
    vector: Tensor | None = None
    """Of a learned word, in place of the encoder's own embedding."""


Chunk = tuple[Token, ...]


class Said(NamedTuple):
    """What one encoder says to prompts."""

    text: Tensor
    """[B, chunks * L, D]"""
    pooled: Tensor
    """[B,P]: projected, where the encoder has a projection."""
    mask: Tensor | None
    """[B, chunks * L], 1 = said; None where all prompts have as many chunks."""

    def embeds(self) -> dict[str, Tensor]:
        """`text`, and `mask` if there is one."""
        return {"text": self.text} if self.mask is None else {"text": self.text, "mask": self.mask}


@dataclass(frozen=True)
class ChunkedText(Text):
    """CLIP's tokenizer, read chunk by chunk; `limit` counts one chunk with its beginning and end."""

    learned: dict[str, Tensor] = field(default_factory=dict, compare=False)
    """Words of textual inversion, as `<cat>`: vectors [n,D]."""

    @property
    def room(self) -> int:
        return self.limit - 2

    @property
    def most(self) -> int:
        """Tokens of the longest prompt, with one beginning and end."""
        return MOST_CHUNKS * self.room + 2

    def reads(self, prompt: str) -> str:
        return prompt

    def chunks(self, prompt: str) -> list[Chunk]:
        """At least one chunk, all of them if they are too many."""
        found: list[list[Token]] = []
        for spans in parse(prompt):
            found.append([])
            for word in (word for span in spans for word in self._words(span)):
                if len(word) <= self.room < len(found[-1]) + len(word):
                    found.append([])  # a learned word stays whole
                for token in word:
                    if len(found[-1]) == self.room:
                        found.append([])
                    found[-1].append(token)
        return [tuple(chunk) for chunk in found]

    def _words(self, span: Span) -> Iterator[list[Token]]:
        """Tokens one by one; those of a learned word together."""
        names = sorted(self.learned, key=len, reverse=True)
        pattern = f"({'|'.join(map(re.escape, names))})" if names else r"(?!)()"
        for i, part in enumerate(re.split(pattern, span.text)):
            if names and i % 2:
                # an id below that of the end, by which CLIP finds where to pool
                start = int(self.tokenizer.bos_token_id)
                yield [Token(start, span.weight, vector) for vector in self.learned[part]]
            elif part:
                yield from ([Token(id, span.weight)] for id in self._ids(part))

    def _ids(self, text: str) -> list[int]:
        with quiet():
            found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def rows(self, chunk: Chunk) -> tuple[list[int], list[int]]:
        """Ids and attention mask [L] of one chunk."""
        end, pad = int(self.tokenizer.eos_token_id), int(self.tokenizer.pad_token_id)
        ids = [int(self.tokenizer.bos_token_id), *(token.id for token in chunk), end]
        left = self.limit - len(ids)
        return ids + [pad] * left, [1] * len(ids) + [0] * left

    def dropped(self, prompt: str) -> str:
        """What lies beyond the last chunk that is read."""
        left, tail = MOST_CHUNKS, ""
        for spans in parse(prompt):
            if left <= 0:
                tail += " " + "".join(span.text for span in spans)
                continue
            room = left * self.room
            for span in spans:
                count = sum(len(word) for word in self._words(span))
                tail += self._tail(span.text, room) if count > room else ""
                room = max(room - count, 0)
            used = left * self.room - room
            left -= max(-(-used // self.room), 1)
        return tail.strip()

    def _tail(self, text: str, kept: int) -> str:
        """The text after so many tokens."""
        if not self.tokenizer.is_fast:
            return str(self.tokenizer.decode(self._ids(text)[kept:]))
        with quiet():
            places = self.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True
            ).offset_mapping
        return text[places[kept][0] :] if kept < len(places) else ""


@dataclass(frozen=True, eq=False)
class ClipPrompts:
    """One tokenizer and its encoder. `layer` -2 is the hidden state before the last layer; None the normed last."""

    words: ChunkedText
    clip: Any
    layer: int | None = None

    @property
    def learned(self) -> dict[str, Tensor]:
        return self.words.learned

    @property
    def width(self) -> int:
        return int(self.clip.config.hidden_size)

    @classmethod
    def of(cls, tokenizer: Any, clip: Any, layer: int | None = None) -> ClipPrompts:
        plain = Text.for_clip(tokenizer, clip)
        return cls(ChunkedText(plain.tokenizer, plain.limit), clip, layer)

    def say(self, prompts: Sequence[Sequence[Chunk]], plain: Sequence[str | None]) -> Said:
        """The chunks of each prompt. Where `plain` has a text, the one chunk is that text as it is."""
        ids, masks = self._ids(prompts, plain)
        chunks = [chunk for prompt in prompts for chunk in prompt]
        text, pooled = self._hear(ids, masks, chunks)
        text = _weighed(text, self._weights(chunks))
        counts = [len(prompt) for prompt in prompts]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        rows = [part.reshape(-1, part.shape[-1]) for part in text.split(counts)]
        mask = None
        if len(set(counts)) > 1:
            mask = torch.zeros(
                len(rows), max(counts) * self.words.limit, dtype=torch.long, device=text.device
            )
            for i, row in enumerate(rows):
                mask[i, : len(row)] = 1
        return Said(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), pooled[starts], mask)

    def _ids(self, prompts: Sequence[Sequence[Chunk]], plain: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        ids, masks = [], []
        for chunks, text in zip(prompts, plain, strict=True):
            if text is not None:
                found = self.words.ids([text])
            else:
                rows = [self.words.rows(chunk) for chunk in chunks]
                found = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
            ids.append(found[0])
            masks.append(found[1])
        return torch.cat(ids), torch.cat(masks)

    def _weights(self, chunks: Sequence[Chunk]) -> Tensor:
        weights = torch.ones(len(chunks), self.words.limit)
        for i, chunk in enumerate(chunks):
            weights[i, 1 : len(chunk) + 1] = torch.tensor([token.weight for token in chunk])
        return weights

    def _hear(self, ids: Tensor, masks: Tensor, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
        """[N,L,D] and pooled [N,P]."""
        device = self.clip.device
        masked = self.clip.config.to_dict().get("use_attention_mask", False)
        with _learned(self.clip, chunks):
            out = self.clip(
                ids.to(device),
                attention_mask=masks.to(device) if masked else None,
                output_hidden_states=self.layer is not None,
            )
        text = out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]
        return text, out.text_embeds if "text_embeds" in out else out.pooler_output


def say(clips: Sequence[ClipPrompts], prompts: Sequence[str]) -> list[Said]:
    """What each encoder says, all in as many chunks, so that their features can stand side by side."""
    told = [[clip.words.chunks(prompt)[:MOST_CHUNKS] for prompt in prompts] for clip in clips]
    for same in zip(*told, strict=True):
        most = max(map(len, same))
        for chunks in same:
            chunks += [()] * (most - len(chunks))
    plain = [[_plain(prompt, chunks) for prompt, chunks in zip(prompts, own, strict=True)] for own in told]
    return [clip.say(own, texts) for clip, own, texts in zip(clips, told, plain, strict=True)]


def _plain(prompt: str, chunks: Sequence[Chunk]) -> str | None:
    """The prompt, if it is one chunk without syntax."""
    bare = parse(prompt) in ([[]], [[Span(prompt, 1.0)]])
    return prompt if bare and len(chunks) == 1 and all(token.vector is None for token in chunks[0]) else None


def _weighed(text: Tensor, weights: Tensor) -> Tensor:
    """Each token [N,L,D] times its weight [N,L], and the chunk's mean as it was."""
    changed = (weights != 1).any(dim=1)
    if not bool(changed.any()):
        return text
    before = text.float()
    after = before * weights.to(text.device)[..., None]
    old, new = (part.mean(dim=(1, 2), keepdim=True) for part in (before, after))
    # where both means are rounding errors, their ratio says nothing
    size = before.square().mean(dim=(1, 2), keepdim=True).sqrt()
    sound = (old.abs() > 1e-4 * size) & (new.abs() > 1e-4 * size)
    restored = after * torch.where(sound, old / new, torch.ones_like(old))
    return torch.where(changed.to(text.device)[:, None, None], restored, before).to(text.dtype)


@contextmanager
def _learned(clip: Any, chunks: Sequence[Chunk]) -> Iterator[None]:
    """The vectors of learned words in place of the encoder's embeddings, inside the block."""
    places = [
        (row, at + 1, token.vector)
        for row, chunk in enumerate(chunks)
        for at, token in enumerate(chunk)
        if token.vector is not None
    ]
    if not places:
        yield
        return

    def replaced(module: Any, given: Any, out: Tensor) -> Tensor:
        out = out.clone()
        for row, at, vector in places:
            out[row, at] = vector.to(out)
        return out

    handle = clip.get_input_embeddings().register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()
