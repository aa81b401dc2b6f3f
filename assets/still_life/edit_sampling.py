"""Random instructions for scenes, with synonyms, and what they lead to."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from .edits import edited
from .grammar import article
from .sampling import RESERVED_PAIRS
from .scene import (
    COLORS,
    LIGHT_COLORS,
    LIGHT_DIRECTIONS,
    MATERIALS,
    RELATIONS,
    SETTINGS,
    SHAPES,
    SIZES,
    Scene,
)
from .words import LIGHT_WORDS, MATERIAL_WORDS, NOUNS, RELATION_WORDS, SETTING_WORDS, SIDE_WORDS, SIZE_WORDS


class Edit(NamedTuple):
    instruction: str
    scene: Scene
    """The scene after the instruction."""


def sample_edit(scene: Scene, seed: int) -> Edit:
    """A random instruction that changes the scene. No reserved (shape, colour) pair comes in anew."""
    rng = Random(f"sample edit {scene.seed} {seed}")
    known = {(t.shape, t.color) for t in scene.things}
    for _ in range(200):
        write = rng.choices(tuple(WRITERS), tuple(WRITERS.values()))[0]
        text = write(scene, rng)
        try:
            after = edited(scene, text)
        except ValueError:  # no room, nothing to stand on, ambiguous: draw another
            continue
        pairs = {(t.shape, t.color) for t in after.things}
        if after != scene and len(pairs) == len(after.things) and not (pairs - known) & RESERVED_PAIRS:
            return Edit(text, after)
    raise RuntimeError(f"no edit found for scene {scene.seed}, seed {seed}")


def _word(rng: Random, words: tuple[str, ...]) -> str:
    return words[0] if rng.random() < 0.6 else rng.choice(words)


def _the(scene: Scene, rng: Random) -> str:
    """A phrase that means one thing of the scene."""
    thing = rng.choice(scene.things)
    noun = _word(rng, NOUNS[thing.shape])
    unique = sum(t.shape == thing.shape for t in scene.things) == 1
    if len(scene.things) == 1 and rng.random() < 0.2:
        return "it"
    return f"the {noun}" if unique and rng.random() < 0.7 else f"the {thing.color} {noun}"


def _new(rng: Random) -> str:
    words = [rng.choice(tuple(COLORS)), _word(rng, NOUNS[rng.choice(SHAPES)])]
    if rng.random() < 0.5:
        words.insert(0, _word(rng, MATERIAL_WORDS[rng.choice(MATERIALS)]))
    if rng.random() < 0.6:
        words.insert(0, _word(rng, SIZE_WORDS[rng.choice(tuple(SIZES))]))
    return article(words)


def _recolor(scene: Scene, rng: Random) -> str:
    thing, color = _the(scene, rng), rng.choice(tuple(COLORS))
    forms = ("make {} {}", "paint {} {}", "turn {} {}", "change the color of {} to {}")
    return _word(rng, forms).format(thing, color)


def _rework(scene: Scene, rng: Random) -> str:
    forms = ("make {} {}", "turn {} {}", "change the material of {} to {}")
    return _word(rng, forms).format(_the(scene, rng), _word(rng, MATERIAL_WORDS[rng.choice(MATERIALS)]))


def _resize(scene: Scene, rng: Random) -> str:
    words = ("larger", "smaller", "bigger", *SIZES)
    return f"make {_the(scene, rng)} {rng.choice(words)}"


def _remove(scene: Scene, rng: Random) -> str:
    carriers = {r.object for r in scene.relations if r.relation == "on top of"}
    loose = [t for i, t in enumerate(scene.things) if i not in carriers]
    thing = rng.choice(loose)
    unique = sum(t.shape == thing.shape for t in scene.things) == 1
    name = thing.shape if unique and rng.random() < 0.7 else f"{thing.color} {thing.shape}"
    return f"{_word(rng, ('remove', 'delete', 'take away', 'erase'))} the {name}"


def _add(scene: Scene, rng: Random) -> str:
    relation = _word(rng, RELATION_WORDS[rng.choice(RELATIONS)])
    return f"{_word(rng, ('put', 'add', 'place'))} {_new(rng)} {relation} {_the(scene, rng)}"


def _replace(scene: Scene, rng: Random) -> str:
    if rng.random() < 0.5:
        noun = _word(rng, NOUNS[rng.choice(SHAPES)])
        return f"turn {_the(scene, rng)} into {article([noun])}"
    return f"replace {_the(scene, rng)} with {_new(rng)}"


def _move(scene: Scene, rng: Random) -> str:
    relation = _word(rng, RELATION_WORDS[rng.choice(RELATIONS)])
    return f"move {_the(scene, rng)} {relation} {_the(scene, rng)}"


def _setting(scene: Scene, rng: Random) -> str:
    name = rng.choice(SETTINGS)
    phrase = _word(rng, SETTING_WORDS[name])
    return rng.choice((f"change the setting to {name}", phrase, f"show it {phrase}"))


def _light(scene: Scene, rng: Random) -> str:
    color = _word(rng, LIGHT_WORDS[rng.choice(LIGHT_COLORS)])
    side = _word(rng, SIDE_WORDS[rng.choice(LIGHT_DIRECTIONS)])
    return rng.choice((f"make the light {color}", f"light it {side}", f"{color} light {side}"))


WRITERS: dict[Callable[[Scene, Random], str], int] = {
    _recolor: 22,
    _rework: 8,
    _resize: 8,
    _remove: 12,
    _add: 16,
    _replace: 12,
    _move: 6,
    _setting: 12,
    _light: 8,
}
"""Kinds of instructions and their weights."""
