"""An encoder that remembers: a prompt goes through the text encoders once, however many pictures ask for it.

    pipe = TextToImage(model, encoder=Remembered(model))

Each prompt is encoded by itself, so what is remembered has the bits of a run of that prompt alone. Where prompts come
out at different lengths (BREAK makes chunks), those of one batch are encoded together, as the model does it itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .protocols import Cond, Model

ROOM = 256 * 2**20
"""Bytes that are remembered at most."""


@dataclass(eq=False)
class Remembered:
    """For one model as it is: after a LoRA or a learned word it must be made anew."""

    model: Model
    room: int = ROOM
    asked: int = 0
    """Prompts asked for."""
    calls: int = 0
    """Prompts that went through the text encoders."""
    _held: OrderedDict[tuple[bool, str], Mapping[str, Tensor]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def __call__(self, prompts: Sequence[str], *, key: str) -> Cond:
        self.asked += len(prompts)
        negative = key.split("/")[0] == "neg"
        own = {prompt: self._one(prompt, key, negative) for prompt in dict.fromkeys(prompts)}
        if len(own) == 1 and len(prompts) == 1:
            return Cond(key, dict(own[prompts[0]]))
        first = own[prompts[0]]
        for name, value in first.items():
            if any(own[prompt][name].shape != value.shape for prompt in own):
                self.calls += len(prompts)
                return self.model.encode(prompts, key=key)
        return Cond(key, {name: torch.cat([own[prompt][name] for prompt in prompts]) for name in first})

    def _one(self, prompt: str, key: str, negative: bool) -> Mapping[str, Tensor]:
        found = self._held.pop((negative, prompt), None)
        if found is None:
            found = self.model.encode([prompt], key=key).embeds
            self.calls += 1
            self._bytes += size(found)
        self._held[negative, prompt] = found
        while self._bytes > self.room and len(self._held) > 1:
            _, gone = self._held.popitem(last=False)
            self._bytes -= size(gone)
        return found


def size(embeds: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in embeds.values())
