"""Instructions carried out on scenes: what is named changes, the rest stays."""

import pytest
import torch
from sfumato.assets.still_life.edit_sampling import WRITERS, sample_edit
from sfumato.assets.still_life.edits import edited
from sfumato.assets.still_life.grammar import caption, parse
from sfumato.assets.still_life.parser import UnknownWords, description
from sfumato.assets.still_life.placing import holds, touch
from sfumato.assets.still_life.render import render
from sfumato.assets.still_life.sampling import RESERVED_PAIRS, sample_scene, scene_from
from sfumato.assets.still_life.scene import Scene


@pytest.fixture(scope="module")
def scene() -> Scene:
    text = "a small red cube left of a large blue cylinder, in a meadow, neutral light from the left"
    return scene_from(parse(text), 4)


@pytest.mark.parametrize(
    ("instruction", "things"),
    [
        ("make the cube green", "small {0} green cube, large {1} blue cylinder"),
        ("Paint the red box white.", "small {0} white cube, large {1} blue cylinder"),
        ("change the color of the cylinder to yellow", "small {0} red cube, large {1} yellow cylinder"),
        ("make the cube out of metal", "small metal red cube, large {1} blue cylinder"),
        ("make the cube larger", "medium {0} red cube, large {1} blue cylinder"),
        ("remove the cube", "large {1} blue cylinder"),
        ("replace the cube with a metal mug", "small metal red mug, large {1} blue cylinder"),
        ("turn the cylinder into a cone", "small {0} red cube, large {1} blue cone"),
        (
            "put a small metal red torus on top of the cylinder",
            "small {0} red cube, large {1} blue cylinder, small metal red torus",
        ),
    ],
)
def test_things_change(scene: Scene, instruction: str, things: str) -> None:
    after = edited(scene, instruction)
    named = things.format(*(t.material for t in scene.things))
    assert ", ".join(map(str, description(after).things)) == named
    assert (after.camera, after.seed, after.setting) == (scene.camera, scene.seed, scene.setting)
    assert holds(after) and not touch(after) and after == edited(scene, instruction)


@pytest.mark.parametrize(
    ("instruction", "facts"),
    [
        ("change the setting to snow", ("snow", "neutral", "left")),
        ("at night", ("night", "neutral", "left")),
        ("move the scene to the desert", ("desert", "neutral", "left")),
        ("make it night", ("night", "neutral", "left")),
        ("make the light warm", ("meadow", "warm", "left")),
        ("light it from the right", ("meadow", "neutral", "right")),
        ("cool light from the front", ("meadow", "cool", "front")),
    ],
)
def test_surroundings_change(scene: Scene, instruction: str, facts: tuple[str, str, str]) -> None:
    after = edited(scene, instruction)
    assert (after.setting, after.light_color, after.light_direction) == facts
    assert (after.things, after.relations, after.camera) == (scene.things, scene.relations, scene.camera)


def test_untouched_pixels_stay(scene: Scene) -> None:
    after = edited(scene, "make the cube green")
    before, then = render([scene, after], size=48, maps=("rgb", "ids")).rgb
    cube = render([scene], size=48, maps=("ids",)).masks[0][0]
    near = torch.nn.functional.max_pool2d(cube[None].float(), 3, 1, 1)[0] > 0
    changed = (before - then).abs().amax(0) > 0
    assert changed[cube].float().mean() > 0.9 and not changed[~near].any()


def test_stacks_follow() -> None:
    stack = scene_from(parse("a small ball on a medium cube"), 1)
    fallen = edited(stack, "remove the cube")
    assert [t.shape for t in fallen.things] == ["sphere"] and fallen.things[0].base == pytest.approx(0.0)
    assert fallen.things[0].position[:2] == stack.things[0].position[:2]
    assert holds(edited(stack, "make the cube larger"))
    beside = edited(stack, "move the ball to the right of the cube")
    assert beside.things[0].base == pytest.approx(0.0) and beside.relations[0].relation == "right of"
    back = edited(beside, "move the sphere on top of the cube")
    assert back.relations == stack.relations and holds(back)
    assert (
        edited(stack, "move the cube to the left").things[0].position[0] < stack.things[0].position[0] - 0.2
    )


@pytest.mark.parametrize(
    ("instruction", "why"),
    [
        ("", "empty"),
        ("remove the cone", "there is no cone; the scene holds small"),
        ("remove it", "could mean"),
        ("make the cube", "tell a color"),
        ("make the cylinder bigger", "large already"),
        ("put a cone on top of the green cube", "there is no green cube"),
        ("put a cone on top of the cube and a mug left of the cube", "places one thing"),
        ("a cone", "is no instruction"),
        ("move the cube", "tell where"),
    ],
)
def test_bad_instructions_say_why(scene: Scene, instruction: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        edited(scene, instruction)


def test_foreign_words_and_impossible_stacks(scene: Scene) -> None:
    with pytest.raises(UnknownWords, match="'zebra'"):
        edited(scene, "remove the zebra")
    stack = scene_from(parse("a small ball on a medium cube"), 1)
    with pytest.raises(ValueError, match="nothing more can stand"):
        edited(stack, "put a cone on the cube")
    with pytest.raises(ValueError, match="carries something"):
        edited(stack, "turn the cube into a cone")
    with pytest.raises(ValueError, match="the only thing"):
        edited(scene_from(parse("a cone")), "remove the cone")


def test_sampled_edits() -> None:
    kinds = set()
    for i in range(150):
        scene = sample_scene(i)
        edit = sample_edit(scene, i)
        assert edit == sample_edit(scene, i) and edit.scene == edited(scene, edit.instruction) != scene
        assert edit.instruction.isascii() and edit.instruction == edit.instruction.lower()
        assert holds(edit.scene) and not touch(edit.scene) and len(edit.scene.things) <= 4
        assert not {(t.shape, t.color) for t in edit.scene.things} & RESERVED_PAIRS
        assert (edit.scene.camera, edit.scene.seed) == (scene.camera, scene.seed)
        kept = sum(t in scene.things for t in edit.scene.things)
        assert kept >= len(scene.things) - 2 and caption(edit.scene)
        kinds.add(edit.instruction.split()[0])
    assert len(kinds) > len(WRITERS)
