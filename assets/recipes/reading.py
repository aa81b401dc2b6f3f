"""A text encoder learns to read before it meets a picture: what a caption tells of each thing, from its states.

The parser says what captions tell. Queries, one for each thing in order of mention and one for the whole, look at the
encoder's states through one layer of attention, and linear maps name the words. So the states come to hold which word
belongs to which thing, the part of a caption that a generator learns last. The queries are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from ..still_life.grammar import caption
from ..still_life.parser import Description, parse
from ..still_life.scene import (
    COLORS,
    LIGHT_COLORS,
    LIGHT_DIRECTIONS,
    MATERIALS,
    RELATIONS,
    SETTINGS,
    SHAPES,
    SIZES,
)
from ..still_life.words import INVERSE
from .captions import WORDINGS, draw, wordings
from .fitting import Fit, fit
from .muon import Muon, muon_groups
from .pool import Pool
from .text import tokenize

MOST = 3
"""Most things of a caption."""
PAIRS = tuple(combinations(range(MOST), 2))
JOINED = (*RELATIONS, "under")
WORDS: tuple[tuple[str, ...], ...] = (SHAPES, tuple(COLORS), MATERIALS, tuple(SIZES))
WHOLE: tuple[tuple[str, ...], ...] = (SETTINGS, LIGHT_DIRECTIONS, LIGHT_COLORS)
FIELDS = (*WORDS * MOST, *(JOINED,) * len(PAIRS), *WHOLE)
"""What is read, in order; of each field 0 stands for "not told"."""
BATCH = 256
MINUTES = 3.0
"""Most minutes of reading; a tenth of the run's at most."""
PLAIN = ("shared", "embedding", "relative_attention", "queries", "thing", "pair", "whole")


def told(text: str) -> list[int]:
    """What a caption tells, as numbers in the order of `FIELDS`."""
    known: Description = parse(text)
    parts = [*(part.values() for part in known.things[:MOST]), *[(None,) * len(WORDS)] * MOST][:MOST]
    links = {}
    for relation in known.relations:
        links[relation.subject, relation.object] = relation.relation
        links[relation.object, relation.subject] = INVERSE.get(relation.relation, "under")
    values = [value for part in parts for value in part]
    values += [links.get(pair) for pair in PAIRS]
    values += [known.setting, known.light_direction, known.light_color]
    return [0 if v is None else 1 + words.index(v) for v, words in zip(values, FIELDS, strict=True)]


def lessons(work: Path, data: Pool) -> Tensor:
    """What each of `captions.wordings` tells, [N,WORDINGS,len(FIELDS)] int8, kept on disk."""
    file = work / f"crowded-lessons-{len(data)}.pt"
    if not file.exists():
        rows = [
            [told(caption(scene, seed=i * WORDINGS + k)) for k in range(WORDINGS)]
            for i, scene in enumerate(data.scenes)
        ]
        torch.save(torch.tensor(rows, dtype=torch.int8), file)
    return torch.load(file, weights_only=True)


class Reader(nn.Module):
    """A text encoder and what reads its states [B,T,D]."""

    def __init__(self, encoder: nn.Module, states: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.encoder, self.states = encoder, states
        self.queries = nn.Parameter(torch.randn(MOST + 1, width) * width**-0.5)
        self.look = nn.MultiheadAttention(width, width // 32, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.thing = nn.Linear(width, sum(1 + len(words) for words in WORDS))
        self.pair = nn.Linear(2 * width, 1 + len(JOINED))
        self.whole = nn.Linear(width, sum(1 + len(words) for words in WHOLE))

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Scores [B,1+words] of each field for token ids [B,T]."""
        states = self.states(ids)
        seen = self.norm(
            self.look(self.queries.expand(len(ids), -1, -1), states, states, need_weights=False)[0]
        )
        things = [
            score
            for k in range(MOST)
            for score in self.thing(seen[:, k]).split([1 + len(w) for w in WORDS], 1)
        ]
        pairs = [self.pair(torch.cat([seen[:, a], seen[:, b]], 1)) for a, b in PAIRS]
        return [*things, *pairs, *self.whole(seen[:, MOST]).split([1 + len(w) for w in WHOLE], 1)]


def teach(
    reader: Reader, work: Path, tokenizer: CLIPTokenizer, data: Pool, *, minutes: float, folder: Path
) -> Reader:
    """Train a reader on the pool's captions, its encoder in place, before a run of `minutes`.

    The last line of `folder/log.jsonl` tells how well it reads: the share of words, and of captions with no word wrong.
    """
    place = next(reader.parameters()).device
    ids, known = wordings(work, tokenizer, data).to(place), lessons(work, data).to(place)
    nothing = tokenize(tokenizer, [""], ids.shape[2])[0].to(place)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        drawn = draw(ids, nothing, BATCH, rng)
        wanted = known[drawn.scene, drawn.wording].long().masked_fill(drawn.empty[:, None], 0)
        scores = reader(drawn.ids)
        terms = [F.cross_entropy(s.float(), w) for s, w in zip(scores, wanted.T, strict=True)]
        right = torch.stack([s.argmax(1) == w for s, w in zip(scores, wanted.T, strict=True)]).float()
        return {"loss": torch.stack(terms).mean(), "words": right.mean(), "captions": right.amin(0).mean()}

    optimiser = Muon(muon_groups(reader, plain=PLAIN))
    taught = fit(
        reader, optimiser, loss, Fit(min(MINUTES, minutes / 10), lr=2e-3, ema=0.99, warmup=50), folder
    )
    reader.load_state_dict(taught.state_dict())
    return reader
