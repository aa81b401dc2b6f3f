"""Prompts to tokens: one tokenizer with its limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import BadInput
from ..prompts import plain
from ._parts import quiet


@dataclass(frozen=True)
class Text:
    """One tokenizer with its limit. Prompts come out as ids and mask, both [B, limit]."""

    tokenizer: Any
    limit: int

    @classmethod
    def for_clip(cls, tokenizer: Any, clip: Any) -> Text:
        """CLIP has as many tokens as position embeddings, whatever its tokenizer says."""
        return cls(tokenizer, min(int(tokenizer.model_max_length), int(clip.config.max_position_embeddings)))

    def ids(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.limit, truncation=True, return_tensors="pt"
        )
        return found.input_ids, found.attention_mask

    def reads(self, prompt: str) -> str:
        """The prompt without the weights that this encoder does not know."""
        return plain(prompt)

    def dropped(self, prompt: str) -> str:
        """The end of the prompt that does not fit."""
        check_prompts([prompt])
        with quiet():
            if len(self.tokenizer(prompt).input_ids) <= self.limit:
                return ""
            kept = self.tokenizer(prompt, max_length=self.limit, truncation=True)
            if self.tokenizer.is_fast:
                ends = [kept.token_to_chars(i) for i in range(len(kept.input_ids))]
                return prompt[max((span.end for span in ends if span), default=0) :].strip()
            all_ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
            inside = self.limit - self.tokenizer.num_special_tokens_to_add()
            return str(self.tokenizer.decode(all_ids[inside:])).strip()


def check_prompts(prompts: Iterable[str]) -> list[str]:
    found = list(prompts)
    if not found:
        raise BadInput("prompt", "no prompt was given; pass at least one, it may be empty")
    for prompt in found:
        if not isinstance(prompt, str):
            raise BadInput("prompt", f"prompt = {prompt!r} is a {type(prompt).__name__}; pass text")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput(
                "prompt",
                f"prompt has half a character (a lone surrogate) at position {error.start}; remove it",
            ) from error
    return found
