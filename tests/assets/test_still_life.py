"""The Still Life world: same seed same bits, true geometry, held-out splits."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sfumato.assets.still_life.camera import TARGET, Camera, named_view
from sfumato.assets.still_life.grammar import caption
from sfumato.assets.still_life.optical_flow import flow
from sfumato.assets.still_life.render import FAR, MAPS, Truth, render
from sfumato.assets.still_life.sampling import RESERVED_PAIRS, caption_is_reserved, holds, sample_scene
from sfumato.assets.still_life.scene import COLORS, SHAPES, Scene, Thing


def pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(t.shape, t.color) for t in scene.things}


def draw(scenes: list[Scene], size: int | tuple[int, int] = 48) -> Truth:
    return render(scenes, size=size, maps=MAPS)


def test_same_seed_same_bits() -> None:
    assert sample_scene(7) == sample_scene(7) != sample_scene(8)
    assert sample_scene(7) != sample_scene(7, split="reserved")
    one, two = draw([sample_scene(7)]), draw([sample_scene(7)])
    for name in MAPS:
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_batch_equals_singles() -> None:
    scenes = [sample_scene(i) for i in (0, 3, 9, 12)]
    whole = draw(scenes)
    for i, scene in enumerate(scenes):
        single = draw([scene])
        for name in MAPS:
            assert torch.equal(getattr(whole, name)[i : i + 1], getattr(single, name))
        assert torch.equal(whole.boxes[i], single.boxes[0])


def test_any_number_of_threads_draws_the_same() -> None:
    scenes = [sample_scene(i) for i in range(12)]
    before, drawn = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            drawn.append(draw(scenes, size=96))
    finally:
        torch.set_num_threads(before)
    for name in MAPS:
        assert all(torch.equal(getattr(drawn[0], name), getattr(other, name)) for other in drawn[1:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_draws_the_same_picture() -> None:
    scenes = [sample_scene(i) for i in range(8)]
    scenes.append(replace(scenes[0], dusk=0.5, camera=Camera(roll_deg=10.0, pan_deg=5.0)))
    here, there = draw(scenes), render(scenes, size=48, maps=MAPS, device="cuda")
    for name in MAPS:
        found = getattr(there, name)
        assert found.device.type == "cuda"
        assert ((found.cpu() - getattr(here, name)).abs() > 0.01).float().mean() < 0.01, name
    assert all(m.device.type == "cuda" for m in there.masks)
    moved = flow(scenes[0], scenes[-1], size=48, device="cuda")
    near = (moved.pixels.cpu() - flow(scenes[0], scenes[-1], size=48).pixels).abs() < 0.05
    assert moved.pixels.device.type == "cuda" and near.float().mean() > 0.99


def test_masks_agree_with_ids() -> None:
    scenes = [sample_scene(i) for i in range(6)]
    truth = draw(scenes)
    for i, scene in enumerate(scenes):
        assert truth.masks[i].dtype == torch.bool and truth.masks[i].shape == (len(scene.things), 48, 48)
        for k, mask in enumerate(truth.masks[i]):
            assert torch.equal(mask, truth.ids[i, 0] == k + 2)
    with pytest.raises(ValueError, match="ids"):
        _ = render(scenes, size=16).masks


def test_new_camera_fields() -> None:
    scene = sample_scene(4)
    assert not {"roll_deg", "pan_deg"} & set(scene.to_dict()["camera"]) and "dusk" not in scene.to_dict()
    level = replace(scene, camera=Camera())
    upside = draw([replace(level, camera=Camera(roll_deg=180.0))]).ids[0, 0]
    turned = draw([level]).ids[0, 0].rot90(2)
    assert (upside == turned).float().mean() > 0.97
    # Panning left moves everything in the picture to the right.
    x = [t.boxes[0][:, 0] for t in (draw([level]), draw([replace(level, camera=Camera(pan_deg=6.0))]))]
    assert (x[1] > x[0] + 3).all()
    for bad in ({"pan_deg": math.nan}, {"azimuth_deg": math.inf}):
        with pytest.raises(ValueError, match="finite"):
            Camera(**bad)


def test_no_star_is_cut_behind() -> None:
    """The night sky straight behind, where its angle jumps, is as smooth as elsewhere."""
    camera = Camera(azimuth_deg=180.0, elevation_deg=5.0, fov_deg=30.0)
    scenes = [
        replace(sample_scene(i), things=(), relations=(), setting="night", camera=camera) for i in range(48)
    ]
    sky = render(scenes, size=(64, 16), maps=("rgb",)).rgb[:, :, :28]
    assert (sky[..., 8] - sky[..., 7]).abs().amax() < 0.15


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(SHAPES),
    lambda x: (
        st.lists(x, max_size=4) | st.dictionaries(st.sampled_from(["shape", "seed", "x"]) | st.text(), x)
    ),
    max_leaves=6,
)
PLACES = (
    "things",
    "relations",
    "camera",
    "setting",
    "seed",
    "dusk",
    "light_color",
    "shape",
    "position",
    "radius",
    "yaw",
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), JUNK)
def test_hostile_data_is_a_value_error_or_a_scene(place: str, junk: object) -> None:
    data = sample_scene(3).to_dict()
    target = data if place in Scene.__dataclass_fields__ else data["things"][0]
    target[place] = junk
    try:
        scene = Scene.from_dict(data)
    except ValueError as error:
        assert str(error)
    else:
        assert Scene.from_dict(scene.to_dict()) == scene
    with pytest.raises(ValueError):
        Scene.from_dict(junk)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["position", "radius", "yaw", "seed", "dusk"])
def test_numbers_beyond_all_floats_are_refused(place: str) -> None:
    data = sample_scene(3).to_dict()
    huge = 10**400
    target = data if place in Scene.__dataclass_fields__ else data["things"][0]
    target[place] = [0, 0, huge] if place == "position" else huge
    with pytest.raises(ValueError):
        Scene.from_dict(data)


def test_json_round_trip() -> None:
    for i in range(30):
        scene = sample_scene(i)
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    data = sample_scene(0).to_dict()
    with pytest.raises(ValueError, match="keys"):
        Scene.from_dict({**data, "weather": "rain"})
    with pytest.raises(ValueError, match="unknown setting"):
        Scene.from_dict({**data, "setting": "moon"})


def test_reserved_pairs_and_captions_stay_out_of_train() -> None:
    assert {p[0] for p in RESERVED_PAIRS} == set(SHAPES) and len({p[1] for p in RESERVED_PAIRS}) == 8
    for i in range(500):
        scene = sample_scene(i)
        assert not pairs(scene) & RESERVED_PAIRS
        assert not caption_is_reserved(caption(scene))
    for i in range(20):
        test, held = sample_scene(i, split="test"), sample_scene(i, split="reserved")
        assert not pairs(test) & RESERVED_PAIRS and caption_is_reserved(caption(test))
        assert pairs(held) & RESERVED_PAIRS


def test_relations_hold_and_nothing_is_hidden() -> None:
    scenes = [s for s in map(sample_scene, range(120)) if len(s.things) > 1]
    full = render(scenes, size=64, maps=("ids",)).ids
    alone = [replace(s, things=(t,), relations=()) for s in scenes for t in s.things]
    whole = iter((render(alone, size=64, maps=("ids",)).ids == 2).sum((1, 2, 3)).tolist())
    for scene, ids in zip(scenes, full, strict=True):
        assert holds(scene)
        for k in range(len(scene.things)):
            assert int((ids == k + 2).sum()) >= 0.55 * next(whole)


def test_depth_of_a_ball_on_the_axis() -> None:
    radius = 0.62  # rests on the ground with its centre at the camera's target
    scene = Scene(
        (Thing("sphere", "red", position=TARGET, radius=radius),), camera=Camera(elevation_deg=20.0)
    )
    truth = draw([scene], size=65)
    assert truth.ids[0, 0, 32, 32] == 2
    assert float(truth.depth[0, 0, 32, 32]) == pytest.approx(scene.camera.distance - radius, abs=3e-3)
    torch.testing.assert_close(truth.normals[0, :, 32, 32], torch.tensor([0.0, 0.0, -1.0]), rtol=0, atol=2e-2)
    assert float(truth.depth.max()) == FAR


def test_camera_matrices_agree_with_the_picture() -> None:
    scene = Scene(
        (Thing("sphere", "red", position=(0.5, 0.3, 0.4), radius=0.4),), camera=named_view("back left")
    )
    truth = draw([scene], size=(48, 80))
    view, k = scene.camera.viewmat(), scene.camera.K((48, 80))
    u, v, z = (k @ (view @ torch.tensor([0.5, 0.3, 0.4, 1.0]))[:3]).tolist()
    assert truth.ids[0, 0, int(v / z), int(u / z)] == 2
    assert float(truth.depth[0, 0, int(v / z), int(u / z)]) == pytest.approx(z - 0.4, abs=0.02)
    assert torch.det(view[:3, :3]).item() == pytest.approx(1.0, abs=1e-5)


def test_boxes_agree_with_ids() -> None:
    scenes = [sample_scene(i) for i in range(6)]
    truth = draw(scenes)
    for scene, ids, boxes in zip(scenes, truth.ids, truth.boxes, strict=True):
        assert boxes.shape == (len(scene.things), 4)
        for k, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
            inside = (ids[0, y0:y1, x0:x1] == k + 2).sum()
            assert inside == (ids == k + 2).sum() > 0


def test_captions() -> None:
    scene = sample_scene(21)
    assert caption(scene) == caption(scene) and caption(scene, 5) == caption(scene, 5)
    words = set()
    for i in range(300):
        for text in (caption(sample_scene(i)), caption(sample_scene(i), i)):
            assert text.isascii() and text == text.lower() and len(text.split()) <= 40
            words |= set(text.replace(",", "").split())
    assert len(words) < 180 and set(COLORS) <= words


def test_values_are_finite_and_in_range() -> None:
    truth = draw([sample_scene(i, split="reserved") for i in range(12)])
    assert torch.isfinite(truth.rgb).all() and 0 <= truth.rgb.min() <= truth.rgb.max() <= 1
    length = truth.normals.square().sum(1).sqrt()
    assert ((length - 1).abs() < 1e-3).logical_or(length == 0).all()
    with pytest.raises(ValueError, match="unknown maps"):
        render([sample_scene(0)], maps=("flow",))
    assert math.isclose(Camera().project(TARGET)[2], Camera().distance)
