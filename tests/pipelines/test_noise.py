"""Noise: the draws are torch's own, one generator per image."""

from __future__ import annotations

import pytest
import torch
from sfumato.pipelines.noise import SeededNoise

SHAPE = (4, 9, 7)


def test_draws_equal_torch_and_diffusers():
    from diffusers.utils.torch_utils import randn_tensor

    noise = SeededNoise.batch(11, 3, SHAPE)
    generators = [torch.Generator().manual_seed(11 + i) for i in range(3)]
    again = [torch.Generator().manual_seed(11 + i) for i in range(3)]
    for _ in range(3):
        got = noise()
        assert torch.equal(got, torch.stack([torch.randn(SHAPE, generator=g) for g in generators]))
        assert torch.equal(got, randn_tensor((3, *SHAPE), generator=again))


def test_a_batch_is_the_stack_of_its_singles():
    batch = SeededNoise.batch(5, 3, SHAPE)
    singles = [SeededNoise.batch(5 + i, 1, SHAPE) for i in range(3)]
    for _ in range(2):
        assert torch.equal(batch(), torch.cat([s() for s in singles]))


def test_restore_goes_on_exactly():
    noise = SeededNoise.batch(5, 2, SHAPE)
    noise()
    states = noise.states()
    wanted = [noise(), noise()]
    other = SeededNoise.batch(77, 2, SHAPE)
    other.restore(states)
    assert torch.equal(other(), wanted[0]) and torch.equal(other(), wanted[1])
    noise.restore(states)
    assert torch.equal(noise(), wanted[0])
    with pytest.raises(ValueError, match="2 generator states for 3 images"):
        SeededNoise.batch(0, 3, SHAPE).restore(states)


def test_dtype_is_cast_after_a_float32_draw():
    half = SeededNoise.batch(5, 1, SHAPE, dtype=torch.bfloat16)()
    assert torch.equal(half, SeededNoise.batch(5, 1, SHAPE)().bfloat16())


def test_whole_has_no_batch_axis_and_global_seeds_stay():
    before = torch.get_rng_state()
    noise = SeededNoise.whole(5, (6, 4, 8, 8))
    assert torch.equal(noise(), torch.randn((6, 4, 8, 8), generator=torch.Generator().manual_seed(5)))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="one seed per image"):
        SeededNoise([], SHAPE)
