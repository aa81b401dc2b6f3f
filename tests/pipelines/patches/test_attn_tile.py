"""Tiles of attention left out inside networks: off is off, what is left out is bounded, runs search for themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement import relative
from cached import OneByOne, run
from patched import broken, traceless
from sfumato.pipelines.patches import attn_tile
from sfumato.pipelines.patches.attn_tile import AttnTile
from tiny_nets import FAMILIES, Tiny, tiny
from tiny_unets import NAMES, tiny_unet
from torch import Tensor

SMALL: dict[str, Any] = {"tile": 16, "smallest": 17}
ALONE = ("flux", "wan", "sd")
"""Those that are looked at closely; each family is run once."""


def opened(name: str) -> Tiny:
    model = tiny(name) if name in FAMILIES else tiny_unet(name)
    if name != "svd":  # its condition holds a picture of one size
        model.shape = (*model.shape[:-2], 16, 16)
    return model


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of tiles that each sparse call kept."""
    shares: list[float] = []
    old = attn_tile.attend

    def watched(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float | None, size: int) -> Tensor:
        shares.append(float(kept.float().mean()))
        return old(q, k, v, kept, scale, size)

    monkeypatch.setattr(attn_tile, "attend", watched)
    return shares


@pytest.mark.parametrize("name", ALONE)
def test_off_felt_repeated_gone(name: str, seen: list[float]) -> None:
    model = opened(name)
    net, plain = model.denoise.net, run(model)
    with traceless(net):
        assert torch.equal(run(model, AttnTile(1.0, **SMALL)), plain)
        assert torch.equal(run(model, AttnTile(0.5, smallest=10**6)), plain) and not seen
        ours = run(model, AttnTile(0.5, dense=1.0, **SMALL))
        assert seen and max(seen) < 1
        assert 1e-5 < relative(ours, plain) < 0.5
        assert torch.equal(run(model, AttnTile(0.5, dense=1.0, **SMALL)), ours)
        finer = run(model, AttnTile(0.9, dense=1.0, **SMALL))
        assert relative(finer, plain) < relative(ours, plain)
        with broken(net), pytest.raises(ZeroDivisionError):
            run(model, AttnTile(0.5, **SMALL))
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize("name", ALONE)
def test_no_picture_depends_on_its_neighbours(name: str) -> None:
    model, patch = opened(name), AttnTile(0.5, every=3, **SMALL)
    one = [run(model, patch, seed=s) for s in (3, 4)]
    assert relative(run(model, patch, seed=3, count=2), torch.cat(one)) < 1e-4
    apart = run(model, patch, seed=3, denoise=OneByOne(model.denoise))
    assert relative(apart, one[0]) < 1e-4


@pytest.mark.parametrize("name", [n for n in (*FAMILIES, *NAMES) if n not in ALONE])
def test_every_family(name: str) -> None:
    out = run(opened(name), AttnTile(0.6, dense=1.0, **SMALL))
    assert bool(out.isfinite().all())


def test_when_it_is_searched_anew(seen: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    model, searched = opened("sd"), []
    old = attn_tile.masses

    def watched(q: Tensor, k: Tensor, size: int, scale: float | None) -> Tensor:
        searched.append(len(q))
        return old(q, k, size, scale)

    monkeypatch.setattr(attn_tile, "masses", watched)
    run(model, AttnTile(0.5, every=0, dense=1.0, **SMALL))
    once, calls = len(searched), len(seen)
    assert once and calls == 5 * once, "six steps, of which the first searches"
    searched.clear()
    run(model, AttnTile(0.5, every=2, dense=1.0, **SMALL))
    assert len(searched) == 3 * once


def test_a_layer_that_would_keep_most_is_computed_whole(seen: list[float]) -> None:
    model = opened("sd")
    assert torch.equal(run(model, AttnTile(0.95, dense=0.0, **SMALL)), run(model)) and not seen


def test_at_most_so_many_tiles(seen: list[float]) -> None:
    run(opened("sd"), AttnTile(0.99, most=2, dense=1.0, **SMALL))
    assert seen and max(seen) <= 2 / 4, "64 tokens and more are four tiles of 16 and more"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mass": 1.5}, "mass must be in 0..1, got 1.5"),
        ({"dense": -0.1}, "dense must be in 0..1, got -0.1"),
        ({"tile": 100}, "tile must be 16, 32, 64 or 128, got 100"),
        ({"every": -1}, "every must be 0 or more, got -1"),
        ({"most": -1}, "most must be 0 or more, got -1"),
        ({"smallest": 0}, "smallest must be 1 or more, got 0"),
    ],
)
def test_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AttnTile(**settings)
    with pytest.raises(ValueError, match="has no site 'attention'"), AttnTile()(torch.nn.Linear(2, 2)):
        pass
