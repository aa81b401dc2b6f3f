"""How many tokens of a model's tokenizer a prompt has. Small files are read, no network is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from ...pipelines.errors import SfumatoError
from .models_page import place_of

LONGEST = 20_000
"""Characters beyond which nothing is counted."""
UNBOUNDED = 100_000
"""Tokenizers say so, or more, where they have no limit."""


def count(prompt: str, model: str) -> str:
    """As "12 of 77 tokens"; nothing where the model's tokenizer is not to be had."""
    if not prompt or len(prompt) > LONGEST:
        return ""
    try:
        place = place_of(model)
    except (SfumatoError, OSError):
        return ""
    found = list(_tokenizers(place)) if place is not None and place.is_dir() else []
    if not found:
        return ""
    told = []
    for folder in found:
        tokenizer, most = _read(folder)
        used = len(tokenizer.encode(prompt).ids)
        told.append(f"{used} of {most}" if most else f"{used}")
    return f"{' / '.join(dict.fromkeys(told))} tokens"


def _tokenizers(place: Path) -> Iterator[Path]:
    for folder in sorted(place.glob("tokenizer*")):
        if (folder / "tokenizer.json").is_file():
            yield folder


@lru_cache(maxsize=8)
def _read(folder: Path) -> tuple[Tokenizer, int]:
    """The tokenizer and its limit, 0 if it has none."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = folder / "tokenizer_config.json"
    about = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    most = about.get("model_max_length", 0) if isinstance(about, dict) else 0
    return tokenizer, int(most) if isinstance(most, int | float) and 0 < most < UNBOUNDED else 0
