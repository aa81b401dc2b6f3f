"""The syntax of prompts that A1111 and ComfyUI have made common, in two steps.

`resolve` needs a seed: `{a|b}` picks one, `__name__` a line of name.txt, `<lora:name:0.8>` is taken out of the text.
`parse` reads the weights in what is left: `(word)` is 1.1, `((word))` 1.21, `(word:1.2)` 1.2, `[word]` 1/1.1; `\\(`
is a plain bracket, BREAK begins a new chunk. Brackets, braces and bars that make no pair are plain text.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from .errors import BadInput
from .named_files import named_file

MOST_WEIGHT = 100.0
"""Of words and LoRAs, in absolute value."""
DEPTH = 20
"""Choices and wildcards inside each other."""
MOST_DRAWS = 10_000
MOST_DRAWN = 1_000_000
"""Characters that wildcards may bring in."""
MOST_LINES = 10_000_000
"""Bytes of a wildcard file."""


class LoraTag(NamedTuple):
    name: str
    weight: float


class Resolved(NamedTuple):
    """A prompt with nothing left to chance: what is encoded, and the LoRAs that it called."""

    text: str
    loras: tuple[LoraTag, ...] = ()


def resolve(prompt: str, seed: int, *, wildcards: Path | None = None, salt: str = "") -> Resolved:
    """The same seed and files give the same text. `salt` lets two prompts of one seed choose independently."""
    return take_loras(draw(prompt, seed, wildcards=wildcards, salt=salt))


def draw(prompt: str, seed: int, *, wildcards: Path | None = None, salt: str = "") -> str:
    """Choices and wildcards resolved; LoRA tags and escapes still stand. Without a folder `__name__` is text."""
    return _Draw(random.Random(f"{seed} {salt}"), wildcards).text(prompt)


@dataclass
class _Draw:
    """One walk through one prompt."""

    rng: random.Random
    wildcards: Path | None
    draws: int = 0
    drawn: int = 0

    def text(self, text: str, depth: int = 0) -> str:
        if depth > DEPTH:
            raise BadInput("prompt", f"prompt: choices or wildcards lie more than {DEPTH} deep in each other")
        choices, found, at = _choices(text), [], 0
        for match in _MARK.finditer(text):
            start = match.start()
            if start < at:
                continue
            if start in choices:
                edges = choices[start]
                chosen = self._one([text[a + 1 : b] for a, b in pairwise(edges)])
                end = edges[-1] + 1
            elif match["wildcard"] and self.wildcards is not None:
                chosen, end = self._line(match["wildcard"]), match.end()
            else:
                continue
            found += [text[at:start], self.text(chosen, depth + 1)]
            at = end
        return "".join([*found, text[at:]])

    def _one(self, options: list[str]) -> str:
        self.draws += 1
        if self.draws > MOST_DRAWS:
            raise BadInput(
                "prompt", f"prompt: more than {MOST_DRAWS} choices; do its wildcards call each other?"
            )
        return options[int(self.rng.random() * len(options))]

    def _line(self, name: str) -> str:
        assert self.wildcards is not None
        line = self._one(wildcard_lines(self.wildcards, name))
        self.drawn += len(line)
        if self.drawn > MOST_DRAWN:
            raise BadInput("prompt", f"prompt: its wildcards bring in more than {MOST_DRAWN} characters")
        return line


def wildcard_lines(folder: Path, name: str) -> list[str]:
    """The lines of a wildcard file that are neither empty nor a comment."""
    path = named_file(folder, name, ".txt", "wildcards")
    if path.stat().st_size > MOST_LINES:
        raise BadInput("wildcards", f"wildcards: {path} is larger than {MOST_LINES} bytes; split it")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("wildcards", f"wildcards: {path} cannot be read as UTF-8 text ({error})") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise BadInput("wildcards", f"wildcards: {path} has no line to choose; write one choice per line")
    return found


_MARK = re.compile(r"\\.|\{|__(?P<wildcard>(?!_)[^\s|{}<>]+?)__(?!_)", re.S)
_BRACE = re.compile(r"\\.|[{|}]", re.S)


def _choices(text: str) -> dict[int, list[int]]:
    """Each `{a|b}`: where it opens -> the places of its brace, bars and brace."""
    found: dict[int, list[int]] = {}
    opened: list[list[int]] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append([match.start()])
        elif match[0] == "|" and opened:
            opened[-1].append(match.start())
        elif match[0] == "}" and opened:
            edges = [*opened.pop(), match.start()]
            if len(edges) > 2:
                found[edges[0]] = edges
    return found


_LORA = re.compile(r"(?<!\\)<lora:([^<>]*)>")
_ESCAPE = re.compile(r"\\([{}|<])")


def take_loras(text: str) -> Resolved:
    """The text without its `<lora:name:weight>` tags, and without the escapes of braces, bars and `<`."""
    first, *others = _LORA.split(text)
    loras = [_lora(inside) for inside in others[::2]]
    rest = first
    for after in others[1::2]:
        rest, after = rest.rstrip(" \t"), after.lstrip(" \t")
        rest += f" {after}" if rest and after else after
    names = [lora.name for lora in loras]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput("prompt", f"prompt: the LoRA {twice!r} is called twice; keep one of its tags")
    return Resolved(_ESCAPE.sub(r"\1", rest), tuple(loras))


def _lora(inside: str) -> LoraTag:
    name, colon, weight = (part.strip() for part in inside.partition(":"))
    if not name:
        raise BadInput("prompt", f"prompt: <lora:{inside[:40]}> names no LoRA; write <lora:name:0.8>")
    if not colon:
        return LoraTag(name, 1.0)
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not abs(number) <= MOST_WEIGHT:  # false of nan too
        raise BadInput(
            "prompt", f"prompt: <lora:{inside[:60]}> has no weight in -100..100; write <lora:name:0.8>"
        )
    return LoraTag(name, number)


class Span(NamedTuple):
    text: str
    weight: float


def parse(prompt: str) -> list[list[Span]]:
    """Chunks, parted by BREAK, of spans. A prompt without syntax is one chunk of one span of weight 1."""
    pieces, pairs = _brackets(prompt)
    closing = {pair.close for pair in pairs.values()}
    chunks: list[list[Span]] = [[]]
    weights = [1.0]
    for i, piece in enumerate(pieces):
        if i in pairs:
            weights.append(weights[-1] * pairs[i].weight)
        elif i in closing:
            weights.pop()
        elif piece.startswith("\\") and len(piece) == 2:
            _say(chunks[-1], piece[1], weights[-1])
        else:
            first, *others = _BREAK.split(piece)
            _say(chunks[-1], first.rstrip() if others else first, weights[-1])
            for j, other in enumerate(others):
                chunks.append([])
                last = j == len(others) - 1
                _say(chunks[-1], other.lstrip() if last else other.strip(), weights[-1])
    return chunks if chunks[-1] or len(chunks) == 1 else chunks[:-1]


def _say(spans: list[Span], text: str, weight: float) -> None:
    if abs(weight) > MOST_WEIGHT:
        raise BadInput(
            "prompt", f"prompt: the weight of {text[:40]!r} is {weight:g}; -100 to 100 are allowed"
        )
    if spans and spans[-1].weight == weight:
        spans[-1] = Span(spans[-1].text + text, weight)
    elif text:
        spans.append(Span(text, weight))


def plain(prompt: str) -> str:
    """For a model that reads plain language: weights written out, as in `(word:1.2)`, are left off, and escaped
    brackets are bare. Every other bracket is part of the language and stays.
    """
    pieces, pairs = _brackets(prompt)
    gone = {i for start, pair in pairs.items() if pair.written for i in (start, pair.close)}
    kept = [piece for i, piece in enumerate(pieces) if i not in gone]
    return "".join(piece[1] if re.fullmatch(r"\\[()\[\]]", piece) else piece for piece in kept)


def escape(text: str) -> str:
    """Text that `parse` gives back as it is, whatever brackets it holds."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


class _Pair(NamedTuple):
    close: int
    weight: float
    written: bool


_PIECE = re.compile(r"\\[\\()\[\]]|[()\[\]]|[^\\()\[\]]+|\\", re.S)
_BREAK = re.compile(r"\bBREAK\b")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_MEANT_AS_NUMBER = re.compile(r"[+-]?([\d.,]*\d[\d.,]*|nan|inf|infinity)", re.I)


def _brackets(prompt: str) -> tuple[list[str], dict[int, _Pair]]:
    """The prompt in pieces, and for each opening bracket that has a partner, the pair. What lies open between a
    bracket and its partner is plain text; a written weight is cut off the text before its bracket.
    """
    pieces = _PIECE.findall(prompt)
    pairs: dict[int, _Pair] = {}
    opened: list[int] = []
    waiting = {"(": 0, "[": 0}
    for i, piece in enumerate(pieces):
        if piece in waiting:
            opened.append(i)
            waiting[piece] += 1
        elif piece in ")]":
            partner = "(" if piece == ")" else "["
            while waiting[partner]:
                start = opened.pop()
                waiting[pieces[start]] -= 1
                if pieces[start] == partner:
                    written = _cut_weight(pieces, i - 1, start) if partner == "(" else None
                    usual = 1.1 if partner == "(" else 1 / 1.1
                    pairs[start] = _Pair(i, usual if written is None else written, written is not None)
                    break
    return pieces, pairs


def _cut_weight(pieces: list[str], last: int, start: int) -> float | None:
    """The number after the colon at the end of what stands before a closing bracket."""
    words, colon, number = pieces[last].rpartition(":")
    number = number.strip()
    if last == start or not colon or not _MEANT_AS_NUMBER.fullmatch(number):
        return None
    if not _NUMBER.fullmatch(number) or abs(float(number)) > MOST_WEIGHT:
        raise BadInput(
            "prompt", f"prompt: {number[:40]!r} is no weight; give a number from -100 to 100, as in 1.2"
        )
    pieces[last] = words
    return float(number)
