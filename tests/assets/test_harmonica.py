"""The recipe of reuse tables: it finds the block that never changes, obeys its price, and its table runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from sfumato.assets.recipes.harmonica import Harmonica
from sfumato.pipelines.families._denoiser import NetDenoiser
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.patches._table import ReuseTable, read_table
from sfumato.pipelines.patches._weights import taylor
from sfumato.pipelines.patches.block_cache import BlockCache
from sfumato.pipelines.patches.taylorseer import TaylorSeer
from sfumato.pipelines.paths import begin, flow
from sfumato.pipelines.protocols import Cond
from sfumato.pipelines.schedules.uniform import Uniform
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor, nn


class BasicTransformerBlock(nn.Module):
    """Adds a vector, which grows with the time's cube by `speed`. Named as one whose stream is known."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(8), requires_grad=False)
        self.speed = speed

    def forward(self, hidden_states: Tensor, time: Tensor) -> Tensor:
        return hidden_states + self.vector * (1 + self.speed * time**3)


class Net(nn.Module):
    def __init__(self, *speeds: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BasicTransformerBlock(speed) for speed in speeds)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = x.flatten(2).mT
        for block in self.blocks:
            h = block(hidden_states=h, time=time)
        return h.mT.reshape(x.shape)


def toy(*speeds: float) -> Any:
    torch.manual_seed(0)

    def call(net: Any, x: Tensor, t: float, embeds: Any) -> Tensor:
        return net(0.1 * x, torch.tensor(t)) + embeds["text"][:, :, None, None]

    return SimpleNamespace(
        denoise=NetDenoiser(Net(*speeds), flow(), torch.float32, "flow", call),
        defaults=SimpleNamespace(width=8, height=8),
        latent_shape=lambda width, height: (8, 2, 2),
        default_schedule=lambda width, height: Uniform(),
        encode=lambda prompts, key: Cond(key, {"text": torch.ones(len(prompts), 8) * (key == "pos")}),
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_never_changes_is_reused_and_what_does_is_computed(scale: float) -> None:
    """A third of the entries is what one block of three takes at every step, and two blocks at the first."""
    made = Harmonica(computed=0.5, pictures=2, scale=scale)(toy(0.0, 8.0, 0.0), ["a", "b"], 4)
    assert made.network == "Net" and made.blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert made.compute == ((1, 1, 1), *[(0, 1, 0)] * 3)


def test_how_much_is_computed() -> None:
    model = toy(0.5, 3.0)
    assert Harmonica(computed=1.0)(model, ["a"], 4).share == 1
    assert Harmonica(computed=0.01)(model, ["a"], 4).compute == ((1, 1), *[(0, 0)] * 3)
    for computed in (0.3, 0.5, 0.7):
        found = Harmonica(computed=computed, bundles=1)(model, ["a"], 10)
        assert found.share == computed and all(len(set(row)) == 1 for row in found.compute)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_best_steps_are_found(order: int) -> None:
    """Of one block: no table that moves one full step is better, nor is the interval; the error is the latents'."""
    model = toy(3.0)
    path = model.denoise.path
    cond = model.encode(["a", "b"], key="pos")
    ts = model.default_schedule(8, 8)(6, path)
    noise = SeededNoise.batch(0, 2, (8, 2, 2), device="cpu")()

    def end(full: tuple[int, ...]) -> Tensor:
        y = begin(path, noise, ts[0])
        for i, (t, u) in enumerate(pairwise(ts)):
            past = [j for j in reversed(full) if j <= i][: order + 1]
            parts = [model.denoise.net(0.1 * y, torch.tensor(ts[j])) for j in past]
            v = sum(w * part for w, part in zip(taylor(past, i), parts, strict=True))
            v = v + cond.embeds["text"][:, :, None, None]
            y = y + (u - t) * v
        return y

    wanted = end(tuple(range(6)))
    tables = [(0, *some) for some in combinations(range(1, 6), 2)]
    errors = {
        full: float(
            ((end(full) - wanted).square().flatten(1).mean(1) / wanted.square().flatten(1).mean(1))
            .log10()
            .mean()
            * 10
        )
        for full in tables
    }
    told: list[tuple[int, float]] = []
    made = Harmonica(computed=0.5, pictures=2, order=order)(
        model, ["a", "b"], 6, told=lambda trials, decibels, _: told.append((trials, decibels))
    )
    found = tuple(i for i, row in enumerate(made.compute) if row[0])
    near = {(0, *sorted({*found[1:]} - {a} | {b})) for a in found[1:] for b in (a - 1, a + 1, 5)}
    assert errors[found] <= min(errors[full] for full in {(0, 2, 4), *near} if full in errors) + 0.01
    assert told[-1][1] == pytest.approx(errors[found], abs=0.05)
    for (trials, decibels), (later, better) in pairwise(told):
        assert later > trials and better < decibels


def test_on_a_real_layout_and_back(tmp_path: Path) -> None:
    """A tiny Flux: the table is the same twice, comes back from its file, and the run obeys it; no trace is left."""
    model = open_model(tiny_models.flux(tmp_path / "flux"))
    recipe = Harmonica(computed=0.7, pictures=1, scale=2.0)
    before = {name: id(module.forward.__func__) for name, module in model.denoise.net.named_modules()}
    made = recipe(model, ["a red cube", "two"], 3)
    assert {name: id(m.forward.__func__) for name, m in model.denoise.net.named_modules()} == before
    assert made == recipe(model, ["a red cube", "two"], 3) and made.share < 1
    made.write(tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == made
    cached = TextToImage(model, patches=(BlockCache(table=str(tmp_path / "table.json")),))
    ask = {"width": 64, "height": 64, "steps": 3, "seed": 7}
    felt, plain = cached("a red cube", **ask).latents, TextToImage(model)("a red cube", **ask).latents
    assert torch.isfinite(felt).all() and not felt.equal(plain)
    assert isinstance(made, ReuseTable) and made.steps == 3


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1])
def test_what_it_tells_is_what_a_run_loses(order: int, tmp_path: Path) -> None:
    """With the built-in model, whose own pictures these are."""
    model, prompts, steps = open_model("still-life"), ["a red cube", "a blue cone"], 6
    scale = model.defaults.guidance
    told: list[tuple[float, ReuseTable]] = []
    recipe = Harmonica(computed=0.7, pictures=2, bundles=2, scale=scale, order=order)
    recipe(model, prompts, steps, told=lambda _, decibels, best: told.append((decibels, best))).write(
        tmp_path / "t.json"
    )
    table = str(tmp_path / "t.json")
    patch = TaylorSeer(order=order, table=table) if order else BlockCache(table=table)
    plain, ours = (
        TextToImage(model, patches=patches)(prompts, steps=steps, seed=0).latents
        for patches in ((), (patch,))
    )
    error, signal = (x.square().flatten(1).mean(1) for x in (ours - plain, plain))
    assert told[-1][1] == read_table(tmp_path / "t.json")
    assert told[-1][0] == pytest.approx(float((error / signal).log10().mean()) * 10, abs=0.02)
    assert told[-1][0] <= told[0][0]


@pytest.mark.parametrize(("pictures", "batch"), [(5, 2), (4, 4), (3, 9)])
def test_batches_change_nothing(pictures: int, batch: int) -> None:
    model, prompts = toy(0.5, 3.0), [str(i) for i in range(pictures)]
    recipe = Harmonica(computed=0.5, pictures=pictures, scale=2.0)
    assert replace(recipe, batch=batch)(model, prompts, 6) == recipe(model, prompts, 6)
    assert replace(recipe, batch=1)(model, prompts, 6) == recipe(model, prompts, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"computed": 0.0},
        {"computed": 1.1},
        {"pictures": 0},
        {"bundles": 0},
        {"batch": 0},
        {"scale": 0.5},
        {"order": 3},
    ],
)
def test_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        Harmonica(**wrong)
