"""The built-in judge on renders that neither it nor any generator was trained on."""

import pytest
import torch
from sfumato.assets.recipes.judge import cells, measure, nothing
from sfumato.assets.recipes.pool import Pool
from sfumato.assets.still_life.judge import Judge, judge, nearest_relation, read
from sfumato.assets.still_life.render import render
from sfumato.assets.still_life.sampling import sample_scene

SEED = 3_500_000
WORDS = (
    "shape",
    "color",
    "material",
    "size",
    "setting",
    "light_direction",
    "light_color",
    "relation",
    "count",
)


@pytest.fixture(scope="module")
def held_out() -> Pool:
    scenes = [sample_scene(SEED + i, split="test") for i in range(512)]
    rgb = render(scenes, size=128).rgb
    assert rgb is not None
    return Pool(rgb.mul(255).round().byte().permute(0, 2, 3, 1).numpy(), scenes)


def test_reads_held_out_renders(held_out: Pool) -> None:
    shares = measure(judge(), held_out)
    for word in WORDS:
        assert shares[word] >= 0.97, f"{word}: {shares}"


def test_measure_fails_an_untrained_judge(held_out: Pool) -> None:
    torch.manual_seed(0)
    shares = measure(Judge().eval(), Pool(held_out.images[:32], held_out.scenes[:32]))
    assert max(shares["shape"], shares["color"], shares["setting"]) < 0.5


def test_noise_and_blank_pictures_have_no_reading() -> None:
    rng = torch.Generator().manual_seed(77)
    assert sum(r is not None for r in read(nothing(100, rng))) <= 2
    blank = torch.stack([torch.full((3, 128, 128), v) for v in (0.0, 0.25, 0.5, 1.0)])
    assert read(blank) == [None] * 4


def test_reading_is_the_same_alone_and_in_a_batch(held_out: Pool) -> None:
    x = held_out.batch(torch.arange(8))
    for together, alone in zip(read(x), [r for image in x for r in read(image[None])], strict=True):
        assert together is not None
        assert alone is not None
        assert [t[:4] for t in together.things] == [t[:4] for t in alone.things]
        for a, b in zip(together.things, alone.things, strict=True):
            assert a.position == pytest.approx(b.position, abs=1e-3)  # batch sizes round differently


def test_reads_other_sizes(held_out: Pool) -> None:
    scenes = held_out.scenes[:40]
    big = render(scenes, size=256).rgb
    assert big is not None
    right = [r is not None and r.setting == s.setting for r, s in zip(read(big), scenes, strict=True)]
    assert sum(right) >= 38


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B,3,H,W\]"):
        read(torch.zeros(3, 128, 128))


def test_relation_agrees_with_the_world() -> None:
    for i in range(300):
        scene = sample_scene(i)
        for rel in scene.relations:
            a, b = scene.things[rel.subject].position, scene.things[rel.object].position
            assert nearest_relation(*(p - q for p, q in zip(a, b, strict=True))) == rel.relation
        assert len(set(cells(scene))) == len(scene.things)
