"""The built-in models' tokenizer: a byte-level BPE in CLIP's form, learned from the world's captions.

All 256 bytes are tokens of their own, so a word that was never seen is spelled out instead of lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from .networks import TEXT_TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"
INSTRUCTIONS = (
    "make the cube green", "remove the cone", "put a torus on top", "add a small red sphere to the left",
    "change the setting to snow", "replace the mug with a pyramid", "turn the sphere into a cylinder",
    "at night", "make it larger", "make it smaller", "move the cube to the right", "as a metal object",
    "depth map", "normal map", "line drawing", "colour the drawing", "color the image", "sharpen the picture",
    "seen from the left", "the same scene from behind", "fill in the missing part", "extend the picture",
    "warm light from the right", "a photo of", "a picture of", "a painting of", "with nothing else", "without shadows",
)  # fmt: skip
"""Sentences of the tasks beside text-to-image, so that their words are whole tokens too."""


def learn(captions: Iterable[str], merges: int = 900) -> CLIPTokenizer:
    """A tokenizer with CLIP's layout: 256 bytes, the same at a word's end, merges in order, start and end marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([*captions, *INSTRUCTIONS * 4], trainer)
    base = [*alphabet, *(a + "</w>" for a in alphabet)]
    learned = [tuple(pair) for pair in _merges(bpe)]
    words = [*base, *dict.fromkeys(w for w in map("".join, learned) if w not in set(base)), START, END]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=learned)
    tokenizer.model_max_length = TEXT_TOKENS
    return tokenizer


def _merges(bpe: Tokenizer) -> list[list[str]]:
    pairs = json.loads(bpe.to_str())["model"]["merges"]
    return [p if isinstance(p, list) else p.split(" ") for p in pairs]


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], length: int) -> Tensor:
    """Token ids [B, length], padded with the end mark and cut where too long."""
    return tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
