"""A small language model in Llama's architecture, trained to go on with the world's captions.

It has a tokenizer of its own, in the form that GPT-2 gave to most: byte-level pieces with the space before a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ..still_life.grammar import caption
from . import networks
from .captions import WORDINGS, kept
from .fitting import Fit, best_device, fit
from .muon import Muon, muon_groups
from .pool import Pool

START, END = "<s>", "</s>"
MERGES = 600
BATCH = 128
PLAIN = ("embed_tokens", "lm_head")


def learn(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that puts START before a text and END after it, and pads with END."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGES,
        initial_alphabet=sorted(alphabet),
        special_tokens=[START, END],
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    marks = [(mark, bpe.token_to_id(mark)) for mark in (START, END)]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", pair=None, special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=networks.TEXT_TOKENS,
    )


def tokenizer_for(work: Path, data: Pool) -> PreTrainedTokenizerFast:
    """The tokenizer in `work/language-tokenizer`, learned from the pool's captions if it is not there yet."""
    folder = work / "language-tokenizer"
    if not folder.exists():
        learn(caption(s, seed=i) for i, s in enumerate(data.scenes[:4096])).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def sentences(work: Path, tokenizer: PreTrainedTokenizerFast, data: Pool) -> Tensor:
    """Token ids [N,WORDINGS,TEXT_TOKENS] int16 of the captions of `captions.wordings`, in its order; kept on disk."""
    return kept(work, "sentences", data, lambda texts: padded(tokenizer, texts).input_ids)


def padded(tokenizer: Any, texts: list[str], *, offsets: bool = False) -> Any:
    """Texts as `input_ids` [B,TEXT_TOKENS], and with `offsets` each token's place in its text."""
    return tokenizer(
        texts,
        padding="max_length",
        max_length=networks.TEXT_TOKENS,
        truncation=True,
        return_tensors="pt",
        return_offsets_mapping=offsets,
    )


def train(work: Path, data: Pool, *, minutes: float) -> LlamaForCausalLM:
    """Learn to tell the next token; an earlier run in `work/language-run` goes on."""
    place, tokenizer = best_device(), tokenizer_for(work, data)
    known = sentences(work, tokenizer, data).to(place)
    torch.manual_seed(5)
    model = networks.llama(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id).to(place)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(known.shape[0] * WORDINGS, (BATCH,), generator=rng, device=place)
        ids = known.flatten(0, 1)[chosen].long()
        used = (ids != tokenizer.pad_token_id).sum(1) + 1
        ids = ids[:, : int(used.amax())]
        scores, after = model(ids[:, :-1]).logits, ids[:, 1:]
        said = torch.arange(after.shape[1], device=place) < used[:, None] - 1
        wanted = after.masked_fill(~said, -100)
        return {"loss": F.cross_entropy(scores.float().transpose(1, 2), wanted, ignore_index=-100)}

    optimiser = Muon(muon_groups(model, plain=PLAIN), weight_decay=0.01)
    return fit(
        model, optimiser, loss, Fit(minutes, lr=2e-3, ema=0.99, warmup=50), work / "language-run"
    ).cpu()
