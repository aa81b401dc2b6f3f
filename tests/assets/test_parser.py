"""Captions and plain text read back, and scenes made from what was read."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sfumato.assets.still_life.camera import VIEWS, view_name
from sfumato.assets.still_life.grammar import caption, parse
from sfumato.assets.still_life.parser import Description, Part, UnknownWords, description
from sfumato.assets.still_life.placing import touch
from sfumato.assets.still_life.sampling import holds, sample_scene, scene_from
from sfumato.assets.still_life.scene import FLAT_TOPS, RELATIONS, SHAPES, SIZES, Relation
from sfumato.assets.still_life.words import INVERSE, SETTING_WORDS, SIZE_WORDS


def told(text: str, words: dict[str, tuple[str, ...]]) -> int:
    phrases = sorted((p for group in words.values() for p in group), key=len, reverse=True)
    return len(re.findall(rf"\b(?:{'|'.join(map(re.escape, phrases))})(?![\w-])", text))


def facts(d: Description) -> set[tuple[str, str, str]]:
    """Relations between named things, each told from one side only."""
    out = set()
    for r in d.relations:
        a, b = (f"{d.things[i].color} {d.things[i].shape}" for i in (r.subject, r.object))
        out.add(
            (b, INVERSE[r.relation], a) if r.relation in ("left of", "in front of") else (a, r.relation, b)
        )
    return out


def test_captions_come_back() -> None:
    azimuths = list(VIEWS.values())
    for i in range(2000):
        scene = sample_scene(i)
        scene = replace(scene, camera=replace(scene.camera, azimuth_deg=azimuths[i % 8]))
        full = description(scene)
        if i % 4 == 0:
            assert parse(caption(scene)) == full
        text = caption(scene, i)
        read = parse(text)
        named = {(p.shape, p.color): p for p in full.things}
        assert len(read.things) == len(named) and facts(read) == facts(full), text
        assert all(p.fits(named[p.shape, p.color]) for p in read.things), text
        assert sum(p.size is not None for p in read.things) == told(text, SIZE_WORDS), text
        assert read.setting == (full.setting if told(text, SETTING_WORDS) else None), text
        assert read.light_direction in (None, full.light_direction)
        assert read.light_color in (None, full.light_color)
        assert read.view == full.view
        if re.search(r"\b(light|lit)\b", text):
            assert read.light_direction or read.light_color, text


@pytest.mark.parametrize(
    ("text", "things", "relations"),
    [
        ("A RED sphere on top of a blue cube, in snow.", "red sphere, blue cube", [(0, "on top of", 1)]),
        ("the big cube with a ball on it", "large cube, sphere", [(1, "on top of", 0)]),
        ("a cube & a ball on top", "cube, sphere", [(1, "on top of", 0)]),
        ("a red cube under the cup made of metal", "red cube, metal mug", [(1, "on top of", 0)]),
        (
            "a ball is left of a cube, behind the red cone",
            "sphere, cube, red cone",
            [(0, "left of", 1), (0, "behind", 2)],
        ),
        (
            "a ball left of a cube behind a cone",
            "sphere, cube, cone",
            [(0, "left of", 1), (1, "behind", 2)],
        ),
        (
            "a red cube, a blue cube and a mug behind the blue cube",
            "red cube, blue cube, mug",
            [(2, "behind", 1)],
        ),
        ("a picture of a tiny dull white thing", "small matte white thing", []),
    ],
)
def test_plain_text(text: str, things: str, relations: list[tuple[int, str, int]]) -> None:
    read = parse(text)
    assert ", ".join(map(str, read.things)) == things
    assert [(r.subject, r.relation, r.object) for r in read.relations] == relations
    assert Description.from_dict(json.loads(json.dumps(read.to_dict()))) == read


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no thing"),
        ("a red", "no thing is named after 'red'"),
        ("a red blue cube", "color is told twice: red and blue"),
        ("a cube in snow at night", "setting is told twice"),
        ("a cube left of", "'left of' needs a thing after it"),
        ("left of a cube", "needs a thing before it"),
        ("a ball on it", "means no thing"),
        ("a red cube, a blue cube and a ball on the cube", "could mean red cube or blue cube"),
        ("cube " * 500, "2000 characters"),
    ],
)
def test_bad_text_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)


def test_unknown_words_are_named_with_their_neighbours() -> None:
    with pytest.raises(UnknownWords, match=r"'redd' \(nearest: red\), 'zebra'") as caught:
        parse("a redd zebra, in snow")
    assert caught.value.nearest["redd"] == ("red",) and "zebra" in caught.value.nearest


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "red", "cube", "ball", "on", "it", ",", "with", "the", "at sea", "é", "-"])
    )
)
def test_any_words_parse_or_raise_value_error(words: list[str]) -> None:
    try:
        assert parse(" ".join(words)).things
    except ValueError as error:
        assert str(error)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from([*Description.__dataclass_fields__, "x"]), x, max_size=6)
        ),
    )
)
def test_hostile_descriptions(data: object) -> None:
    with pytest.raises(ValueError):
        Description.from_dict({**parse("a cube").to_dict(), "things": data, "view": data})  # type: ignore[dict-item]
    with pytest.raises(ValueError):
        Description.from_dict(data)  # type: ignore[arg-type]


def test_scenes_hold_what_was_described() -> None:
    for i in range(120):
        wanted = parse(caption(sample_scene(i), i))
        scene = scene_from(wanted, i)
        assert scene == scene_from(wanted, i)
        assert holds(scene) and not touch(scene)
        assert all(p.fits(q) for p, q in zip(wanted.things, description(scene).things, strict=True))
        assert set(wanted.relations) <= set(scene.relations)
        assert wanted.setting in (None, scene.setting)
        assert wanted.light_color in (None, scene.light_color)
        # What was made can be told, and read again.
        again = parse(caption(scene))
        assert sorted(map(str, again.things)) == sorted(map(str, description(scene).things))
        assert facts(again) == facts(description(scene))


def test_every_pair_in_every_relation_finds_a_place() -> None:
    sizes = [(a, b) for a in SIZES for b in SIZES]
    for i, shape in enumerate(SHAPES):
        for j, other in enumerate(SHAPES):
            relation = RELATIONS[(i + j) % 4]
            size, other_size = sizes[(3 * i + j) % 9]
            wanted = Description(
                (Part(shape, "red", size=size), Part(other, "blue", size=other_size)),
                (Relation(0, relation, 1),),
                view="left",
            )
            scene = scene_from(wanted, i)
            assert holds(scene) and view_name(scene.camera) == "left"
    for shape in SHAPES:
        for flat in FLAT_TOPS:
            assert holds(
                scene_from(
                    parse(f"a small red {shape} on a small blue {flat}, and a cone left of the blue {flat}"),
                    1,
                )
            )


def test_open_points_differ_by_seed() -> None:
    wanted = parse("a cube left of a thing")
    scenes = [scene_from(wanted, seed) for seed in range(12)]
    assert len({s.things[1].shape for s in scenes}) > 3 and len({s.setting for s in scenes}) > 2
    assert scenes[0] != scenes[1]
    # Things without a relation get one, so that the picture has an order that can be told.
    assert len(scene_from(parse("a red ball, a cone, a mug and a cube"), 0).relations) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a cube on a sphere", "nothing can stand on a sphere: only cubes and cylinders have flat tops"),
        ("a large ball on a small cube", "too wide to stand on"),
        ("a ball on a cube and a cone on the cube", "one thing stands on one other thing"),
        ("a ball on a cube on a cube on a cube", "higher than the picture"),
        ("a red cube on a blue cube and the blue cube on the red cube", "cannot stand on itself"),
        ("a red cube left of a ball and the ball left of the red cube", "found no place"),
        ("a cube, a cone, a ball, a mug and a ring", "1 to 4 things, got 5"),
    ],
)
def test_impossible_scenes_say_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        scene_from(parse(text))
