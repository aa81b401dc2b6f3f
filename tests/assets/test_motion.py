"""Clips along tracks, and optical flow that carries one frame onto the other."""

import json
from dataclasses import replace

import pytest
import torch
from sfumato.assets.still_life.camera import Camera
from sfumato.assets.still_life.motion import AMOUNTS, PHRASES, Track, clip, phrase, settled
from sfumato.assets.still_life.optical_flow import flow
from sfumato.assets.still_life.placing import framed, touch
from sfumato.assets.still_life.render import render
from sfumato.assets.still_life.sampling import sample_scene
from sfumato.assets.still_life.scene import Relation, Scene, Thing
from torch.nn.functional import grid_sample, max_pool2d

SIZE = 64


def matte(seed: int) -> Scene:
    """A daylight scene without mirrors, whose surfaces look the same from everywhere."""
    scene = sample_scene(seed)
    things = tuple(replace(t, material="matte") for t in scene.things)
    return replace(scene, things=things, setting="desert")


def warp_errors(a: Scene, b: Scene) -> tuple[float, float]:
    """Mean difference to frame a of frame b warped by the flow, and of frame b itself, where both show the same."""
    truth = render([a, b], size=SIZE, maps=("rgb", "ids"))
    moved = flow(a, b, size=SIZE)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    grid = torch.stack((x + moved.pixels[0], y + moved.pixels[1]), -1)[None] / SIZE * 2 - 1
    warped = grid_sample(truth.rgb[1:], grid, align_corners=False, padding_mode="border")[0]
    ids = truth.ids[:1].float()
    inner = (max_pool2d(ids, 5, 1, 2) == -max_pool2d(-ids, 5, 1, 2))[0]
    where = (moved.visible & inner)[0]
    assert where.float().mean() > 0.3
    error = (warped - truth.rgb[0]).abs().mean(0)[where].mean()
    return float(error), float((truth.rgb[1] - truth.rgb[0]).abs().mean(0)[where].mean())


@pytest.mark.parametrize("kind", AMOUNTS)
def test_first_frame_is_the_still(kind: str) -> None:
    scene = matte(5)
    frames = clip(scene, Track(kind), 4, seed=2)
    assert len(frames) == 4 and frames == clip(scene, Track(kind), 4, seed=2)
    still, drawn = render([scene], size=32), render(frames, size=32)
    assert torch.equal(drawn.rgb[0], still.rgb[0])
    steps = [(b - a).abs().mean() for a, b in zip(drawn.rgb[:-1], drawn.rgb[1:], strict=True)]
    assert min(steps) > 1e-4  # every frame moves
    assert clip(scene, Track(kind), 1) == [scene]
    for frame in frames:
        assert Scene.from_dict(json.loads(json.dumps(frame.to_dict()))) == frame
        assert not touch(frame) and framed(replace(frame, camera=Camera()), around=False)


def test_no_motion_is_no_flow() -> None:
    scene = sample_scene(2)
    still = flow(scene, scene, size=(40, 64))
    assert still.pixels.shape == (2, 40, 64) and still.visible.shape == (1, 40, 64)
    assert still.pixels.abs().max() < 1e-3 and still.visible.float().mean() > 0.995


@pytest.mark.parametrize("kind", ["orbit", "pan", "zoom", "roll"])
@pytest.mark.parametrize("seed", [3, 11])
def test_flow_warps_one_frame_onto_the_other(kind: str, seed: int) -> None:
    scene = matte(seed)
    frames = clip(scene, Track(kind), 5, seed)
    error, without = warp_errors(frames[0], frames[2])
    assert error < 0.004 and error < 0.25 * without


def test_flow_of_a_sliding_thing() -> None:
    scene = Scene((Thing("cube", "red", position=(0.0, 0.0, 0.4836)),), camera=Camera(elevation_deg=0.0))
    later = clip(scene, Track("slide", 0.5, 0), 2)[1]
    moved = flow(scene, later, size=65)
    on_cube = render([scene], size=65, maps=("ids",)).ids[0, 0] == 2
    # 0.5 units at the depth of the front face.
    want = scene.camera.focal(65, 65) * 0.5 / (5.9 - 0.78 * 0.62)
    shift = moved.pixels[0][on_cube]
    assert shift.median() == pytest.approx(want, rel=0.02) and moved.pixels[1][on_cube].abs().max() < 0.1
    assert moved.pixels[:, ~on_cube].abs().max() < 1e-3
    # What the cube comes to cover is not visible any more, the cube itself is.
    covered = (render([later], size=65, maps=("ids",)).ids[0, 0] == 2) & ~on_cube
    assert not moved.visible[0][covered].any() and moved.visible[0][on_cube].float().mean() > 0.95


def test_the_far_side_of_a_thing_is_hidden() -> None:
    scene = Scene((Thing("cube", "red", position=(0.0, 0.0, 0.4836)),), camera=Camera(elevation_deg=0.0))
    behind = replace(scene, camera=Camera(azimuth_deg=180.0, elevation_deg=0.0))
    on_cube = render([scene], size=48, maps=("ids",)).masks[0][0]
    assert flow(scene, behind, size=48).visible[0][on_cube].float().mean() < 0.02


def test_stacks_move_together() -> None:
    things = (
        Thing("sphere", "red", position=(0.0, 0.0, 1.5872)),
        Thing("cube", "blue", position=(0.0, 0.0, 0.4836)),
    )
    scene = Scene(things, (Relation(0, "on top of", 1),))
    slid = clip(scene, Track("slide", 0.4, 1), 3)[-1]
    assert [t.position[0] for t in slid.things] == [0.4, 0.4]
    grown = clip(scene, Track("grow", 1.2, 1), 3)[-1]
    assert grown.things[0].base == pytest.approx(grown.things[1].top) and grown.relations == scene.relations
    assert grown.things[1].base == pytest.approx(0.0)


def test_night_falls() -> None:
    scene = matte(3)
    day, dusk, night = render(clip(scene, Track("day to night"), 3), size=32).rgb.mean((1, 2, 3)).tolist()
    assert day > dusk + 0.05 > night + 0.1
    end = clip(scene, Track("day to night"), 2)[1]
    same = render([end, replace(scene, setting="night")], size=32).rgb
    assert (same[0] - same[1]).abs().max() < 1e-4  # the end of dusk is the night
    with pytest.raises(ValueError, match="night already"):
        clip(replace(scene, setting="night"), Track("day to night"), 2)


def test_tracks_in_words_and_out_of_range() -> None:
    scene = sample_scene(4)
    assert set(PHRASES) == set(AMOUNTS)
    for kind in AMOUNTS:
        assert phrase(scene, settled(replace(scene, setting="snow"), Track(kind), 1)).split()[0] == "the"
    assert phrase(scene, Track("zoom", 0.7)) == "the camera zooms out"
    for bad in (("spin", None), ("zoom", 0.0), ("orbit", float("nan")), ("day to night", 1.5)):
        with pytest.raises(ValueError):
            Track(*bad)
    with pytest.raises(ValueError, match="no thing has room"):
        clip(scene, Track("slide", 50.0), 3)
    with pytest.raises(ValueError, match="frames"):
        clip(scene, Track("pan"), 0)
