"""The recipe of reuse tables: it finds the block that never changes, obeys its price, and its table runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from sfumato.assets.recipes.harmonica import Harmonica, _proxies, _Routed
from sfumato.pipelines.blocks import cut, spans, stacks
from sfumato.pipelines.families._denoiser import NetDenoiser
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches._table import ReuseTable, read_table
from sfumato.pipelines.patches.block_cache import BlockCache
from sfumato.pipelines.paths import flow
from sfumato.pipelines.protocols import Cond
from sfumato.pipelines.schedules.uniform import Uniform
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor, nn


class BasicTransformerBlock(nn.Module):
    """Adds a vector, which grows with the time by `speed`. Named as one whose stream is known."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(8), requires_grad=False)
        self.speed = speed

    def forward(self, hidden_states: Tensor, time: Tensor) -> Tensor:
        return hidden_states + self.vector * (1 + self.speed * time)


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
    made = Harmonica(rounds=40, batch=2, price=0.003, scale=scale)(toy(0.0, 8.0, 0.0), ["a", "b"], 5)
    assert made.network == "Net" and made.blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert made.compute == ((1, 1, 1), *[(0, 1, 0)] * 4)


def test_the_price() -> None:
    """Free computing computes all; a high price leaves the first step only."""
    model = toy(0.5, 3.0)
    assert Harmonica(price=0.0)(model, ["a"], 4).share == 1
    assert Harmonica(rounds=40, batch=1, price=1e4)(model, ["a"], 4).compute == ((1, 1), *[(0, 0)] * 3)


def test_steps_that_matter_weigh_more() -> None:
    """lambda_t is the change of the end by the error of step t, if that alone reuses, against its mean."""
    model = toy(3.0)
    net, path = model.denoise.net, model.denoise.path
    routed = _Routed([torch.full((1,), -50.0) for _ in range(4)], torch.Generator())
    cond = model.encode(["a"], key="pos")
    ts, x = [1.0, 0.8, 0.5, 0.2, 0.0], torch.randn(1, 8, 2, 2)

    def predict(x: Tensor, t: float) -> Any:
        return model.denoise(x, t, cond)[0]

    with spans(cut(stacks(net)), routed.enters, routed.leaves):
        told = _proxies(routed, predict, x, ts, path)
    ends, errors = [], []
    for reused in (None, 1, 2, 3):
        y = x
        for i in range(4):
            t, u = ts[i], ts[i + 1]
            time = ts[i - 1] if i == reused else t
            v = net(0.1 * y, torch.tensor(time)) + cond.embeds["text"][:, :, None, None]
            if i == reused:
                right = net(0.1 * y, torch.tensor(t)) + cond.embeds["text"][:, :, None, None]
                errors.append((v - right).square().mean() / right.square().mean())
            y = y + (u - t) * v
        ends.append(y)
    changes = torch.stack([(end - ends[0]).square().mean() for end in ends[1:]]) / torch.stack(errors)
    torch.testing.assert_close(told[1:], changes / changes.mean(), rtol=1e-3, atol=1e-4)
    assert told[0] == 0


def test_on_a_real_layout_and_back(tmp_path: Path) -> None:
    """A tiny Flux: the table is the same twice, comes back from its file, and the run obeys it; no trace is left."""
    model = open_model(tiny_models.flux(tmp_path / "flux"))
    recipe = Harmonica(rounds=3, batch=1, price=50.0, rate=2.0, scale=2.0)
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


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"batch": 0}, {"refresh": 0}, {"price": -1.0}, {"rate": 0.0}, {"scale": 0.5}]
)
def test_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        Harmonica(**wrong)
    assert dataclasses.replace(Harmonica(), rounds=1).rounds == 1
