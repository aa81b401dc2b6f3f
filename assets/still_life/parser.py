"""Texts about scenes to descriptions: `parse` reads every caption of grammar.py and plain user text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

from .camera import VIEWS, view_name
from .scene import (
    COLORS,
    LIGHT_COLORS,
    LIGHT_DIRECTIONS,
    MATERIALS,
    SETTINGS,
    SHAPES,
    SIZES,
    Relation,
    Scene,
    check_word,
    from_record,
    to_record,
)
from .words import INSTRUCTION_WORDS, phrases

LONGEST = 2000
"""Most characters of a text."""
MOST_WORDS = 8
"""Most words of a phrase."""


class UnknownWords(ValueError):
    """The text holds words outside the vocabulary; `nearest` maps each to known ones."""

    def __init__(self, nearest: Mapping[str, Sequence[str]]) -> None:
        self.nearest = {word: tuple(known) for word, known in nearest.items()}
        told = [f"{w!r}" + (f" (nearest: {', '.join(k)})" if k else "") for w, k in self.nearest.items()]
        super().__init__(f"unknown word{'s' if len(told) > 1 else ''} {', '.join(told)}")


@dataclass(frozen=True)
class Part:
    """What is told of one thing; None is left open."""

    shape: str | None = None
    color: str | None = None
    material: str | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        check_word("shape", self.shape, SHAPES)
        check_word("color", self.color, COLORS)
        check_word("material", self.material, MATERIALS)
        check_word("size", self.size, SIZES)

    def __str__(self) -> str:
        words = (self.size, self.material, self.color, self.shape or "thing")
        return " ".join(w for w in words if w)

    def fits(self, other: Part) -> bool:
        """True when `other` is told to be all that this is."""
        pairs = zip(self.values(), other.values(), strict=True)
        return all(mine is None or mine == theirs for mine, theirs in pairs)

    def values(self) -> tuple[str | None, str | None, str | None, str | None]:
        return self.shape, self.color, self.material, self.size


@dataclass(frozen=True)
class Description:
    """A partial scene; None is left open."""

    things: tuple[Part, ...]
    relations: tuple[Relation, ...] = ()
    setting: str | None = None
    light_direction: str | None = None
    light_color: str | None = None
    view: str | None = None
    """One of `VIEWS`; None is the front."""

    def __post_init__(self) -> None:
        check_word("setting", self.setting, SETTINGS)
        check_word("light direction", self.light_direction, LIGHT_DIRECTIONS)
        check_word("light color", self.light_color, LIGHT_COLORS)
        check_word("view", self.view, VIEWS)
        for rel in self.relations:
            if not {rel.subject, rel.object} <= set(range(len(self.things))) or rel.subject == rel.object:
                raise ValueError(f"relation {rel} does not join two of the {len(self.things)} things")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return to_record(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Description:
        """Inverse of `to_dict`; raises ValueError on data that is no description."""
        x = from_record(data, Description)
        x["things"] = tuple(Part(**from_record(t, Part)) for t in x["things"])
        x["relations"] = tuple(Relation(**from_record(r, Relation)) for r in x["relations"])
        return Description(**x)


def description(scene: Scene) -> Description:
    """All that the canonical caption of a scene tells."""
    view = view_name(scene.camera)
    return Description(
        tuple(Part(t.shape, t.color, t.material, t.size) for t in scene.things),
        scene.relations,
        "night" if scene.dusk >= 0.5 else scene.setting,
        scene.light_direction,
        scene.light_color,
        None if view == "front" else view,
    )


class Token(NamedTuple):
    kind: str
    value: str
    text: str


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]*\w|[^\w\s]", text.lower())


@cache
def _table(instruction: bool) -> tuple[dict[tuple[str, ...], tuple[str, str]], set[str]]:
    """Phrases as tuples of words, with their meanings, and all their words."""
    told = {**phrases(), **(INSTRUCTION_WORDS if instruction else {})}
    table = {tuple(_words(phrase)): meaning for phrase, meaning in told.items()}
    return table, {word for phrase in table for word in phrase}


def tokens(text: str, *, instruction: bool = False) -> list[Token]:
    """Words to known phrases, the longest first; instructions know some more. Raises UnknownWords."""
    if len(text) > LONGEST:
        raise ValueError(f"a text may have {LONGEST} characters, got {len(text)}")
    table, known = _table(instruction)
    words = [p for w in _words(text) for p in ([w] if w in known else [x for x in w.split("-") if x] or [w])]
    out: list[Token] = []
    unknown: dict[str, list[str]] = {}
    at = 0
    while at < len(words):
        for count in range(min(MOST_WORDS, len(words) - at), 0, -1):
            phrase = tuple(words[at : at + count])
            if phrase in table:
                out.append(Token(*table[phrase], " ".join(phrase)))
                break
        else:
            count = 1
            near = get_close_matches(words[at], sorted(known - {words[at]}), 2, 0.65)
            unknown[words[at]] = near or sorted({" ".join(p) for p in table if words[at] in p}, key=len)[:2]
        at += count
    if unknown:
        raise UnknownWords(unknown)
    return [t for t in out if t.kind != "filler"]


@dataclass
class Reader:
    """Reads tokens one by one into things, relations and facts."""

    parts: list[Part] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    """Attributes of the thing being read."""
    definite: bool = False
    subject: int = -1
    """The thing that the clause is about."""
    last: int = -1
    """The thing named just before, -1 after a comma, `and` or `with`."""
    mentioned: int = -1
    """The thing named last, whatever came after."""
    before: int = -1
    """What `it` means: the thing named before the subject."""
    link: tuple[int, str, bool] | None = None
    """A relation that still needs its other side: subject, relation, the other way round."""

    def read(self, token: Token) -> None:
        kind, value, text = token
        if kind in ("size", "material", "color"):
            self._set(self.told, kind, value)
        elif kind in ("setting", "light_direction", "light_color", "view"):
            self._set(self.facts, kind, value)
        elif kind == "noun":
            told, self.told = {**self.told, **({"shape": value} if value else {})}, {}
            self._name(self._find(Part(**told)))
            self.definite = False
        elif kind == "it":
            if self.link is None or self.before < 0:
                raise ValueError(f"{text!r} means no thing here")
            self._name(self.before)
        elif kind == "made":
            if self.last < 0 or self.parts[self.last].material not in (None, value):
                raise ValueError(f"{text!r} belongs right after a thing of open material")
            self.parts[self.last] = replace(self.parts[self.last], material=value)
        elif kind in ("relation", "inverse", "top"):
            self._relate(kind, value, text)
        else:
            self._rest()
            self.definite = value == "the"
            self.last = self.last if kind == "article" else -1

    def close(self) -> Description:
        """What was read; raises ValueError when something is left hanging."""
        self._rest()
        if self.link:
            raise ValueError(f"{self.link[1]!r} needs a thing after it")
        if not self.parts:
            raise ValueError(f"the text names no thing; known: {', '.join(SHAPES)}")
        return Description(tuple(self.parts), tuple(self.relations), **self.facts)

    def _set(self, told: dict[str, str], kind: str, value: str) -> None:
        if told.get(kind, value) != value:
            raise ValueError(f"{kind.replace('_', ' ')} is told twice: {told[kind]} and {value}")
        told[kind] = value

    def _rest(self) -> None:
        if self.told:
            raise ValueError(f"no thing is named after {' '.join(self.told.values())!r}")

    def _find(self, part: Part) -> int:
        """Index of a new thing, or of the one that "the ..." means."""
        own = self.link[0] if self.link else -1
        same = [i for i, p in enumerate(self.parts) if i != own and part.fits(p)] if self.definite else []
        if len(same) > 1:
            raise ValueError(f"'the {part}' could mean {' or '.join(str(self.parts[i]) for i in same)}")
        if same:
            return same[0]
        self.parts.append(part)
        return len(self.parts) - 1

    def _name(self, index: int) -> None:
        if self.link:
            subject, relation, swapped = self.link
            ends = (index, subject) if swapped else (subject, index)
            if ends[0] == ends[1]:
                raise ValueError(f"a thing cannot be {relation} itself")
            rel = Relation(ends[0], relation, ends[1])
            self.relations += [rel] if rel not in self.relations else []
            self.link = None
        else:
            self.before, self.subject = self.mentioned, index
        self.last = self.mentioned = index

    def _relate(self, kind: str, value: str, text: str) -> None:
        self._rest()
        subject = self.last if self.last >= 0 else self.subject
        if subject < 0 or self.link:
            raise ValueError(f"{text!r} needs a thing before it")
        if subject != self.subject:
            self.before = self.subject
        self.link = (subject, value, kind == "inverse")
        if kind == "top":
            if self.before < 0:
                raise ValueError(f"{text!r} needs a thing to stand on")
            self._name(self.before)


def parse(text: str) -> Description:
    """The description that a text gives. Raises ValueError, for foreign words UnknownWords."""
    reader = Reader()
    for token in tokens(text):
        reader.read(token)
    return reader.close()
