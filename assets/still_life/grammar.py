"""Captions of scenes: one composer over the tables of words.py, and `parse`, its inverse.

`caption(scene)` is the canonical caption, all attributes told; `caption(scene, seed)` draws
synonyms, word orders and left-out attributes. Lower-case ASCII.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .camera import view_name
from .parser import parse
from .scene import Scene, Thing
from .words import (
    ARTICLE_AN,
    INVERSE,
    LEADS,
    LIGHT_WORDS,
    MATERIAL_WORDS,
    NOUNS,
    RELATION_WORDS,
    SETTING_WORDS,
    SIDE_WORDS,
    SIZE_WORDS,
    UNDER_WORDS,
)

__all__ = ["article", "caption", "describe", "parse"]


def caption(scene: Scene, seed: int | None = None) -> str:
    """The canonical caption, or with a seed a varied one."""
    rng = None if seed is None else Random(f"caption {seed}")
    return " ".join(_compose(scene, rng).split())


def _pick(rng: Random | None, words: tuple[str, ...]) -> str:
    """The canonical word, or half of the time any of its synonyms."""
    return words[0] if rng is None or rng.random() < 0.5 else rng.choice(words)


def _told(rng: Random | None, chance: float) -> bool:
    return rng is None or rng.random() < chance


def describe(thing: Thing, rng: Random | None = None, *, definite: bool = False) -> str:
    """Noun phrase for one thing; definite phrases tell colour and shape only."""
    if definite:
        return f"the {thing.color} {NOUNS[thing.shape][0]}"
    words = []
    if _told(rng, 0.6):
        words.append(_pick(rng, SIZE_WORDS[thing.size]))
    tail = ""
    if _told(rng, 0.6):
        if thing.material == "metal" and rng is not None and rng.random() < 0.2:
            tail = " made of metal"
        else:
            words.append(_pick(rng, MATERIAL_WORDS[thing.material]))
    words.append(thing.color)
    if rng is not None and rng.random() < 0.12:
        rng.shuffle(words)
    words.append(_pick(rng, NOUNS[thing.shape]))
    return f"{article(words)}{tail}"


def article(words: Sequence[str]) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in ARTICLE_AN else 'a'} {' '.join(words)}"


def _objects(scene: Scene, rng: Random | None) -> str:
    names = [describe(t, rng) for t in scene.things]
    if not scene.relations:
        return " and ".join(names)
    first = scene.relations[0]
    told = _relate(names[first.subject], first.relation, names[first.object], rng)
    known = {first.subject, first.object}
    for rel in scene.relations[1:]:
        subject, anchor = (
            describe(scene.things[i], definite=True) if i in known else names[i]
            for i in (rel.subject, rel.object)
        )
        joint = "with" if rng is not None and rng.random() < 0.2 else "and"
        told += f" {joint} {subject} {_pick(rng, RELATION_WORDS[rel.relation])} {anchor}"
        known |= {rel.subject, rel.object}
    return " and ".join([told, *(name for i, name in enumerate(names) if i not in known)])


def _relate(subject: str, relation: str, anchor: str, rng: Random | None) -> str:
    if rng is None or rng.random() < 0.65:
        return f"{subject} {_pick(rng, RELATION_WORDS[relation])} {anchor}"
    if relation == "on top of":
        if rng.random() < 0.5:
            return f"{anchor} with {subject} on top of it"
        return f"{anchor} {_pick(rng, UNDER_WORDS)} {subject}"
    return f"{anchor} {_pick(rng, RELATION_WORDS[INVERSE[relation]])} {subject}"


def _compose(scene: Scene, rng: Random | None) -> str:
    objects = _objects(scene, rng)
    place = "night" if scene.dusk >= 0.5 else scene.setting
    setting = _pick(rng, SETTING_WORDS[place]) if _told(rng, 0.92) else ""
    light = _light(scene, rng)
    view = view_name(scene.camera)
    seen = "" if view == "front" else f"seen from the {view}"
    if setting and rng is not None and rng.random() < 0.25:
        parts = [setting, objects, light, seen]
    elif light and rng is not None and rng.random() < 0.1:
        parts = [light, objects, setting, seen]
    else:
        lead = "" if rng is None else rng.choice(LEADS)
        parts = [lead + objects, setting, light, seen]
    return ", ".join(p for p in parts if p)


def _light(scene: Scene, rng: Random | None) -> str:
    if not _told(rng, 0.6):
        return ""
    color = f"{_pick(rng, LIGHT_WORDS[scene.light_color])} " if _told(rng, 0.75) else ""
    side = f" {_pick(rng, SIDE_WORDS[scene.light_direction])}" if _told(rng, 0.75) else ""
    if rng is not None and side and rng.random() < 0.2:
        return f"lit{side}" if not color else f"lit by {color}light{side}"
    return f"{color}light{side}" if color or side else ""
