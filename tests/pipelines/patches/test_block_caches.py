"""What every cache of blocks must do, in every family: nothing when off, the same twice, alone or in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import relative
from cached import OneByOne, broken, positive, positive_beside_the_other, run
from patched import saved, traceless
from sfumato.pipelines.adapters import open_control
from sfumato.pipelines.blocks import stacks
from sfumato.pipelines.patches.block_cache import BlockCache
from sfumato.pipelines.patches.deepcache import DeepCache
from sfumato.pipelines.patches.first_block import FirstBlock
from sfumato.pipelines.patches.sd3_controlnet import Sd3ControlNet
from sfumato.pipelines.patches.taylorseer import TaylorSeer
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.samplers.heun import heun
from tiny_nets import FAMILIES, Tiny, tiny
from torch import nn

CACHES: dict[str, Any] = {
    "first-block": FirstBlock(1.0),
    "first-block, always": FirstBlock(1e6),
    "block-cache": BlockCache(2),
    "taylorseer": TaylorSeer(2, warmup=2),
    "whole stacks": TaylorSeer(3, order=2, warmup=1, whole=True, newton=True),
}
OFF = (FirstBlock(0.0), BlockCache(1), TaylorSeer(1))


@pytest.fixture(scope="module")
def made() -> dict[str, Tiny]:
    return {name: tiny(name) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_off(made: dict[str, Tiny], family: str) -> None:
    """Neutral settings to the bit; and so is the whole machinery while nothing is near enough to be reused."""
    plain = run(made[family])
    for patch in (*OFF, FirstBlock(1e-9), TaylorSeer(2, warmup=6), BlockCache(100, table="")):
        same = torch.equal(run(made[family], patch), plain)
        assert same != (patch == BlockCache(100)), patch


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_behaves(made: dict[str, Tiny], family: str, cache: str) -> None:
    model, patch = made[family], CACHES[cache]
    net, plain = model.denoise.net, run(model)
    with traceless(net):
        felt = run(model, patch)
        assert torch.isfinite(felt).all()
        assert cache == "first-block" or relative(felt, plain) > 1e-5
        assert torch.equal(run(model, patch), felt)
        two = run(model, patch, count=2)
        assert relative(two, torch.cat([felt, run(model, patch, seed=1)])) < 1e-4
        assert relative(run(model, patch, denoise=OneByOne(model.denoise)), felt) < 1e-4
        with pytest.raises(ZeroDivisionError), patch(net):
            raise ZeroDivisionError
        with broken(net), pytest.raises(ZeroDivisionError):
            run(model, patch)
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_branches_never_mix(made: dict[str, Tiny], family: str, cache: str) -> None:
    """The positive branch comes out as if there were no other, though the other was there first and far away."""
    model, patch = made[family], CACHES[cache]
    alone = run(model, patch, guidance=positive)
    assert relative(run(model, patch, guidance=positive_beside_the_other), alone) < 1e-4
    one_by_one = OneByOne(model.denoise)
    assert relative(run(model, patch, guidance=positive_beside_the_other, denoise=one_by_one), alone) < 1e-4
    assert cache == "first-block" or relative(run(model, guidance=positive), alone) > 1e-5


@pytest.mark.parametrize("cache", CACHES)
def test_a_sampler_that_evaluates_twice(made: dict[str, Tiny], cache: str) -> None:
    model = made["flux"]
    plain, felt = run(model, sampler=heun), run(model, CACHES[cache], sampler=heun)
    assert torch.isfinite(felt).all()
    assert cache == "first-block" or relative(felt, plain) > 0
    assert torch.equal(run(model, CACHES[cache], sampler=heun), felt)


@pytest.mark.parametrize("cache", CACHES)
def test_bfloat16(cache: str) -> None:
    model = tiny("sd3")
    model.denoise.net.to(torch.bfloat16)
    model.denoise.dtype = torch.bfloat16
    felt = run(model, CACHES[cache])
    assert felt.dtype == torch.float32 and torch.isfinite(felt).all()


@pytest.mark.parametrize("patch", [*CACHES.values(), DeepCache()], ids=[*CACHES, "deepcache"])
def test_a_network_without_the_site(patch: Any) -> None:
    words = "has no site 'skip'" if isinstance(patch, DeepCache) else "has no site 'blocks'"
    with pytest.raises(ValueError, match=f"Sequential {words}"), patch(nn.Sequential(nn.Linear(2, 2))):
        pass


def test_a_block_that_nobody_has_described() -> None:
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="site 'blocks': nobody has said which streams Linear returns"):
        stacks(net)


def test_two_in_the_slot(made: dict[str, Tiny]) -> None:
    with pytest.raises(ValueError, match="FirstBlock and TaylorSeer both need the slot 'block cache'"):
        Pipeline(made["flux"].denoise, patches=(FirstBlock(), TaylorSeer()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FirstBlock(-1.0), "threshold must be 0 or more, got -1.0"),
        (lambda: BlockCache(0), "interval must be 1 or more, got 0"),
        (lambda: TaylorSeer(0), "interval and warmup must be 1 or more, got 0 and 3"),
        (lambda: TaylorSeer(order=3), r"order must be in 0..2, got 3"),
        (lambda: DeepCache(0), "interval must be 1 or more, got 0"),
        (lambda: DeepCache(branch=-1), "branch must be 0 or more"),
        (lambda: DeepCache(power=0.5), r"power must be in 1..4, got 0.5"),
    ],
)
def test_settings_out_of_range(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("cache", CACHES)
def test_beside_a_control_network(made: dict[str, Tiny], cache: str, tmp_path: Path) -> None:
    """What it adds between blocks goes on where they are passed by, in whichever order the patches are given."""
    from diffusers import SD3ControlNetModel

    model = made["sd3"]
    torch.manual_seed(0)
    config = {**model.denoise.net.config, "num_layers": 3}
    control = open_control(saved(SD3ControlNetModel.from_config(config), tmp_path / "control"))
    adapter = Sd3ControlNet(control, torch.randn(1, *model.shape))
    plain, felt = run(model, CACHES[cache]), run(model, CACHES[cache], adapter)
    assert torch.isfinite(felt).all() and relative(felt, plain) > 1e-3
    assert relative(run(model, adapter, CACHES[cache]), felt) < 1e-4
    whole = run(model, adapter)
    assert relative(run(model, adapter, TaylorSeer(2, warmup=6)), whole) < 1e-6
