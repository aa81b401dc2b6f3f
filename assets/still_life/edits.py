"""Instructions such as "make the cube green", read and carried out on scenes.

What an instruction does not name stays as it is, to the bit: places, camera, ground and sky.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from .motion import OVERHANG, resized
from .parser import Description, Part, Reader, Token, description, tokens
from .placing import STACK_LIMIT, carried, framed, related, seen, touch, true
from .sampling import MAX_THINGS, random_thing
from .scene import FLAT_TOPS, FORMS, RELATIONS, SIZES, Relation, Scene, Thing

Groups = Mapping[str, str]
CHANGE = r"(?:change|set|switch|turn|make)"


def edited(scene: Scene, instruction: str) -> Scene:
    """The scene after the instruction. Raises ValueError with one sentence when that is not possible."""
    text = " ".join(instruction.lower().split()).rstrip(".! ")
    for pattern, act in RULES:
        if match := re.fullmatch(pattern, text):
            return act(scene, match.groupdict(""))
    raise ValueError("the instruction is empty")


def _tokens(text: str) -> list[Token]:
    return tokens(text, instruction=True)


def _target(scene: Scene, words: Sequence[Token]) -> int:
    """The one thing that a noun phrase means."""
    named = {
        t.kind if t.kind != "noun" else "shape": t.value for t in words if t.value and t.kind != "article"
    }
    if unfit := set(named) - {"shape", "color", "material", "size"}:
        raise ValueError(
            f"a thing is told by shape, color, material and size, not by {', '.join(sorted(unfit))}"
        )
    part = Part(**named)
    parts = description(scene).things
    fit = [i for i, p in enumerate(parts) if part.fits(p)]
    if not fit:
        raise _absent(scene, part)
    if len(fit) > 1:
        raise ValueError(f"'the {part}' could mean {' or '.join(f'the {parts[i]}' for i in fit)}")
    return fit[0]


def _absent(scene: Scene, part: Part) -> ValueError:
    return ValueError(f"there is no {part}; the scene holds {', '.join(map(str, description(scene).things))}")


def _split(text: str) -> tuple[list[Token], list[Token]]:
    """Tokens up to the noun, and those after it."""
    words = _tokens(text)
    ends = [i for i, t in enumerate(words) if t.kind in ("noun", "it")]
    if not ends:
        raise ValueError(f"no thing is named in {text!r}")
    return words[: ends[0] + 1], words[ends[0] + 1 :]


def _remove(scene: Scene, text: Groups) -> Scene:
    target, rest = _split(text["a"])
    if rest:
        raise ValueError(f"{rest[0].text!r} has no meaning here")
    gone = _target(scene, target)
    if len(scene.things) == 1:
        raise ValueError("the only thing cannot be removed")
    drop = scene.things[gone].top - scene.things[gone].base
    things = _shifted(scene.things, carried(scene.relations, gone) - {gone}, (0.0, 0.0, -drop))
    kept = [r for r in scene.relations if gone not in (r.subject, r.object)]
    under = [r.object for r in scene.relations if r.relation == "on top of" and r.subject == gone]
    above = [r.subject for r in scene.relations if r.relation == "on top of" and r.object == gone]
    kept += [Relation(a, "on top of", b) for a in above for b in under]
    shift = [i - (i > gone) for i in range(len(things))]
    relations = tuple(Relation(shift[r.subject], r.relation, shift[r.object]) for r in kept)
    return replace(scene, things=tuple(t for i, t in enumerate(things) if i != gone), relations=relations)


def _make(scene: Scene, text: Groups) -> Scene:
    """Attributes of a thing, or of the whole scene ("make it night")."""
    target, rest = _split(f"{text['a']} {text.get('b', '')}")
    if rest and {t.kind for t in rest} <= {"setting", "light_color", "light_direction"}:
        return _with_facts(scene, rest)
    index = _target(scene, target)
    told = {
        "material" if t.kind == "made" else t.kind: t.value
        for t in rest
        if t.kind not in ("article", "break")
    }
    if not told or set(told) - {"color", "material", "size", "step"}:
        raise ValueError("tell a color, a material or a size that the thing shall have")
    thing = scene.things[index]
    if "step" in told:
        place = list(SIZES).index(thing.size) + int(told.pop("step"))
        if not 0 <= place < len(SIZES):
            raise ValueError(f"the {thing.color} {thing.shape} is {thing.size} already")
        told["size"] = list(SIZES)[place]
    return _exchanged(scene, index, Part(**told))


def _replace(scene: Scene, text: Groups) -> Scene:
    target, rest = _split(text["a"])
    new, beyond = _split(text["b"])
    if rest or beyond:
        raise ValueError(f"{(rest + beyond)[0].text!r} has no meaning here")
    named = {"shape" if t.kind == "noun" else t.kind: t.value for t in new if t.value and t.kind != "article"}
    return _exchanged(scene, _target(scene, target), Part(**named))


def _exchanged(scene: Scene, index: int, part: Part) -> Scene:
    """Thing `index` with what `part` tells; what stands on it moves up or down with its top."""
    old = scene.things[index]
    above = carried(scene.relations, index) - {index}
    shape = part.shape or old.shape
    if above and shape not in FLAT_TOPS:
        raise ValueError(f"the {old.color} {old.shape} carries something, which a {shape} cannot")
    radius = old.radius
    if part.size and part.size != old.size:
        radius *= SIZES[part.size] / SIZES[old.size]
    x, y, _ = old.position
    new = replace(
        resized(old, radius),
        shape=shape,
        color=part.color or old.color,
        material=part.material or old.material,
        size=part.size or old.size,
        position=(x, y, old.base + FORMS[shape].lift * radius),
        yaw=old.yaw if shape == old.shape else _random(scene, f"{index} {shape}", part).yaw,
    )
    if (shape, radius) == (old.shape, old.radius):
        new = replace(new, position=old.position)
    things = _shifted(scene.things, above, (0.0, 0.0, new.top - old.top))
    things[index] = new
    out = replace(scene, things=tuple(things))
    if (shape, radius) != (old.shape, old.radius) and not _stands(out):
        raise ValueError(f"there is no room for a {new.size} {shape} in place of the {old.color} {old.shape}")
    return out


def _random(scene: Scene, salt: str, part: Part) -> Thing:
    return random_thing(Random(f"edit {scene.seed} {salt}"), part)


def _stands(scene: Scene) -> bool:
    stacks = [
        (scene.things[r.subject], scene.things[r.object])
        for r in scene.relations
        if r.relation == "on top of"
    ]
    firm = all(a.radius <= OVERHANG * b.radius and a.top <= STACK_LIMIT for a, b in stacks)
    return firm and not touch(scene) and framed(scene, max(5.9, scene.camera.distance), around=False)


def _shifted(things: Sequence[Thing], which: set[int], by: tuple[float, float, float]) -> list[Thing]:
    def moved(t: Thing) -> Thing:
        x, y, z = (a + b for a, b in zip(t.position, by, strict=True))
        return replace(t, position=(x, y, z))

    return [moved(t) if i in which else t for i, t in enumerate(things)]


def _place(scene: Scene, text: Groups) -> Scene:
    """Add a thing, or move one ("put a cone behind the cube", "move the cube to the left of the cone")."""
    count = len(scene.things)
    bearers = {r.object for r in scene.relations if r.relation == "on top of"}
    free = [i for i, t in enumerate(scene.things) if t.shape in FLAT_TOPS and i not in bearers]
    # "to the left" alone is left of all; "on top" alone, on what can carry.
    alone = [0] if count == 1 else free if len(free) == 1 else [-1]
    if end := re.search(r"(?:left|right|front|back)$", text["a"]):
        alone = [_outermost(scene, end[0])]
    reader = Reader(list(description(scene).things), mentioned=alone[0])
    for token in _tokens(text["a"]):
        reader.read(token)
    wanted = reader.close()
    if reader.facts or len(wanted.relations) > 1 or reader.subject < 0:
        raise ValueError("an instruction places one thing, beside or on one other")
    if any(rel.object >= count for rel in wanted.relations):
        raise _absent(scene, wanted.things[wanted.relations[0].object])
    if reader.subject < count and not wanted.relations:
        raise ValueError("tell where the thing shall go")
    if count == MAX_THINGS and reader.subject >= count:
        raise ValueError(f"a scene holds at most {MAX_THINGS} things")
    if len(wanted.things) > count + 1:
        raise ValueError("an instruction adds one thing")
    return _put(scene, wanted, reader.subject, Random(f"edit {scene.seed} {text['a']}"))


def _outermost(scene: Scene, side: str) -> int:
    x, y = SIDES[side]
    reach = [x * t.position[0] + y * t.position[1] for t in scene.things]
    return reach.index(max(reach))


def _nudge(scene: Scene, text: Groups) -> Scene:
    """Move a thing, and what stands on it, some way to one side."""
    target, rest = _split(text["a"])
    if rest:
        raise ValueError(f"{rest[0].text!r} has no meaning here")
    index = _target(scene, target)
    if any(r.relation == "on top of" and r.subject == index for r in scene.relations):
        raise ValueError("what stands on another thing would fall")
    stack = carried(scene.relations, index)
    for step in (0.9, 0.7, 0.5, 0.3):
        x, y = (step * s for s in SIDES[text["b"]])
        things = tuple(_shifted(scene.things, stack, (x, y, 0.0)))
        out = replace(scene, things=things, relations=tuple(r for r in scene.relations if true(things, r)))
        if _stands(out):
            return out
    raise ValueError(f"there is no room for it to move to the {text['b']}")


def _put(scene: Scene, wanted: Description, index: int, rng: Random) -> Scene:
    """Thing `index` at a random free place in its relation; a new one if the scene has fewer things."""
    new = index >= len(scene.things)
    stack = {index} if new else carried(scene.relations, index)
    part = wanted.things[index]
    if wanted.relations:
        goal = wanted.relations[0]
        carrier = scene.things[goal.object]
        if goal.relation == "on top of":
            taken = {r.object for r in scene.relations if r.relation == "on top of" and r.subject != index}
            if carrier.shape not in FLAT_TOPS or goal.object in taken:
                raise ValueError(f"nothing more can stand on the {carrier.color} {carrier.shape}")
        if goal.object in stack:
            raise ValueError(f"the {carrier.color} {carrier.shape} stands on it")
    for attempt in range(300):
        if not wanted.relations:
            goal = Relation(index, rng.choice(RELATIONS[:4]), rng.randrange(len(scene.things)))
        old = random_thing(rng, part) if new else scene.things[index]
        spot = related(old, goal.relation, scene.things[goal.object], rng)
        if spot is None:
            continue
        x, y, z = (a - b for a, b in zip(spot.position, old.position, strict=True))
        things = [*scene.things, spot] if new else _shifted(scene.things, stack, (x, y, z))
        kept = [
            r for r in scene.relations if index != r.subject and (index != r.object or r.subject in stack)
        ]
        out = replace(scene, things=tuple(things), relations=(*kept, goal))
        if true(out.things, goal) and _stands(out) and seen(out, 0.7 if attempt < 150 else 0.35):
            return out
    anchor = f"the {description(scene).things[goal.object]}" if wanted.relations else "the others"
    raise ValueError(f"there is no room for the {part} {goal.relation} {anchor}")


def _facts(scene: Scene, text: Groups) -> Scene:
    return _with_facts(scene, _tokens(text["a"]))


def _light(scene: Scene, text: Groups) -> Scene:
    return _with_facts(scene, _tokens(re.sub(r"^(\w+)(?= from|$)", r"\1 light", text["a"])))


def _with_facts(scene: Scene, words: Sequence[Token]) -> Scene:
    """Setting and light as told."""
    facts = {t.kind: t.value for t in words if t.kind not in ("article", "break", "it")}
    if foreign := [t.text for t in words if t.kind in facts and t.kind not in FACTS]:
        raise ValueError(f"{foreign[0]!r} is no instruction; try make, remove, put, move, replace or change")
    return replace(
        scene,
        setting=facts.get("setting", scene.setting),
        dusk=0.0 if "setting" in facts else scene.dusk,
        light_direction=facts.get("light_direction", scene.light_direction),
        light_color=facts.get("light_color", scene.light_color),
    )


SIDES = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "front": (0.0, -1.0), "back": (0.0, 1.0)}
FACTS = ("setting", "light_direction", "light_color")
RULES: tuple[tuple[str, Callable[[Scene, Groups], Scene]], ...] = (
    (r"(?:remove|delete|erase|take away|get rid of) (?P<a>.+)", _remove),
    (r"(?:replace|swap|exchange) (?P<a>.+?) (?:with|by|for) (?P<b>.+)", _replace),
    (rf"(?:transform|{CHANGE}) (?P<a>.+?) into (?P<b>an? .+)", _replace),
    (rf"{CHANGE} the (?:colou?r|material|size) of (?P<a>.+?) to (?P<b>.+)", _make),
    (rf"(?:{CHANGE} )?the light(?:ing)?(?: to| come)? (?P<a>.+)", _light),
    (rf"(?:{CHANGE}|move) the (?:setting|background|scene|place|season)(?: to| into)? (?P<a>.+)", _facts),
    (r"(?:make|paint|colou?r|recolou?r|turn) (?P<a>.+)", _make),
    (r"(?:move|shift|slide) (?P<a>.+) (?:to|towards) the (?P<b>left|right|front|back)", _nudge),
    (r"(?:add|put|place|move|shift|set) (?P<a>.+)", _place),
    (r"(?:light it |show it |now )?(?P<a>.+)", _facts),
)
"""What an instruction looks like, and what it does; the first that fits is taken."""
