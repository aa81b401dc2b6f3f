"""The pool's captions as the recipes read them: the tokenizer learned from them, several wordings of each, batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ..still_life.grammar import caption
from . import networks
from .pool import Pool
from .text import learn, tokenize

DROP = 0.1
WORDINGS = 8


def tokenizer_for(work: Path, data: Pool) -> CLIPTokenizer:
    """The tokenizer in `work/tokenizer`, learned from the pool's captions if it is not there yet."""
    folder = work / "tokenizer"
    if not folder.exists():
        learn(caption(s, seed=i) for i, s in enumerate(data.scenes[:4096])).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def wordings(work: Path, tokenizer: CLIPTokenizer, data: Pool) -> Tensor:
    """Token ids [N, WORDINGS, TEXT_TOKENS] of several captions of each scene, int16, kept on disk."""
    return kept(work, "wordings", data, lambda texts: tokenize(tokenizer, texts, networks.TEXT_TOKENS))


def kept(work: Path, name: str, data: Pool, ids: Callable[[list[str]], Tensor]) -> Tensor:
    """ids(captions) [WORDINGS,T] of each scene, [N,WORDINGS,T] int16, kept on disk under a name."""
    file = work / f"crowded-{name}-{len(data)}.pt"
    if not file.exists():
        rows = []
        for i, scene in enumerate(data.scenes):
            captions = [caption(scene, seed=i * WORDINGS + k) for k in range(WORDINGS)]
            rows.append(ids(captions).short())
        torch.save(torch.stack(rows), file)
    return torch.load(file, weights_only=True)


class Drawn(NamedTuple):
    """A batch of captions: rows of the pool, which wording of each, its token ids [B,T]; `empty` marks dropped ones."""

    scene: Tensor
    wording: Tensor
    ids: Tensor
    empty: Tensor


def draw(known: Tensor, nothing: Tensor, batch: int, rng: torch.Generator) -> Drawn:
    """`batch` scenes and one wording of each out of `known` [N,K,T]; a share `DROP` of them is `nothing` [T] instead.

    Four times as many are drawn and sorted by length, and one quarter is taken, so that texts of one batch are about
    equally long. They are padded to the longest, in multiples of 8, and in every fourth batch in full.
    """
    place, many = rng.device, 4 * batch
    scene = torch.randint(len(known), (many,), generator=rng, device=place)
    wording = torch.randint(known.shape[1], (many,), generator=rng, device=place)
    ids = known[scene, wording].long()
    used = (ids != nothing[-1]).sum(1) + 1
    at = torch.randint(4, (), generator=rng, device=place) * batch
    chosen = used.argsort()[at : at + batch]
    empty = torch.rand(batch, generator=rng, device=place) < DROP
    ids = torch.where(empty[:, None], nothing, ids[chosen])
    if torch.rand((), generator=rng, device=place) >= 0.25:
        ids = ids[:, : int(-(-used[chosen].amax() // 8) * 8)]
    return Drawn(scene[chosen], wording[chosen], ids, empty)
