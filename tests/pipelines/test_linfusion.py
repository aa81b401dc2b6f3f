"""Self-attention made linear in networks: the published layout comes in and goes out, and distillation learns."""

from __future__ import annotations

import copy
import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import relative
from sfumato.assets.recipes.linfusion import Distilled
from sfumato.kernels.attention import linear
from sfumato.pipelines.converts._linear import save, self_attentions
from sfumato.pipelines.converts.linfusion import LinFusion
from sfumato.pipelines.converts.w8a8 import W8A8
from sfumato.pipelines.errors import BadWeights, NoSite
from sfumato.pipelines.loading import find_model, open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.paths import begin
from sfumato.pipelines.protocols import State
from sfumato.pipelines.rehearsal import sampling
from sfumato.pipelines.samplers.ddim import Ddim
from tiny_nets import tiny
from tiny_unets import tiny_unet
from torch import Tensor, nn


def called(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([pred.x0 for pred in model.denoise(model.noise(0), 0.6, *model.conds)])


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart"])
def test_layers_become_linear(name: str, tmp_path: Path) -> None:
    model = tiny_unet(name) if name != "pixart" else tiny(name)
    net, plain = model.denoise.net, called(model)
    assert LinFusion()(net) is net
    ours = called(model)
    assert bool(ours.isfinite().all()) and relative(ours, plain) > 1e-3
    assert torch.equal(called(model), ours)
    torch.manual_seed(0)
    for layer in self_attentions(net).values():
        for beside in (layer.to_q_, layer.to_k_):
            nn.init.normal_(beside[3].weight, std=0.1)
    changed = called(model)
    assert relative(changed, ours) > 1e-4

    other = tiny_unet(name) if name != "pixart" else tiny(name)
    save(net, tmp_path / "there")
    LinFusion(tmp_path / "there")(other.denoise.net)
    assert torch.equal(called(other), changed), "what was written comes in again"


def test_a_layer_is_what_the_paper_says() -> None:
    """One layer, spelled out: eq. 10 with elu + 1 on both sides, each seeing its own small network."""
    net = LinFusion()(tiny_unet("sd").denoise.net)
    layer = next(iter(self_attentions(net).values()))
    torch.manual_seed(0)
    nn.init.normal_(layer.to_q_[3].weight)
    x = torch.randn(2, 9, layer.to_q.in_features)
    with torch.no_grad():
        q, k, v = layer.to_q(x + layer.to_q_(x)), layer.to_k(x + layer.to_k_(x)), layer.to_v(x)
        q, k, v = (t.unflatten(2, (layer.heads, -1)).transpose(1, 2) for t in (q, k, v))
        wanted = layer.to_out[0](linear.reference(q, k, v).transpose(1, 2).flatten(2).float())
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(NoSite, match="has no site 'attn1'"):
        LinFusion()(tiny("flux").denoise.net)
    net = LinFusion()(tiny_unet("sd").denoise.net)
    save(net, folder := tmp_path / "there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"], "nothing else is left"
    with pytest.raises(BadWeights, match=r"is for a layer '.*attn1', which UNet2DConditionModel has not"):
        LinFusion(folder)(tiny_unet("sdxl").denoise.net)
    config = json.loads((folder / "config.json").read_text())
    config["modules_list"][0]["projection_mid_dim"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadWeights, match=r"does not fit at to_q_\.0\.weight"):
        LinFusion(folder)(tiny_unet("sd").denoise.net)
    (folder / "config.json").write_text("{}")
    with pytest.raises(BadWeights, match="has no modules_list"):
        LinFusion(folder)(tiny_unet("sd").denoise.net)
    for wrong in ({"minutes": 0}, {"batch": 0}, {"rate": -1}, {"features": -1}):
        with pytest.raises(ValueError, match="must be above 0"):
            Distilled(**wrong)


def apart(model: Any, net: nn.Module, prompt: str) -> float:
    """The mean distance of `net` from the model's own along a run of the latter that no training saw."""
    own, denoise = model.defaults, model.denoise
    ts = model.default_schedule(own.width, own.height)(8, denoise.path)
    noise = SeededNoise.batch(1000, 1, model.latent_shape(own.width, own.height))
    cond, state = model.encode([prompt], key="pos"), State(begin(denoise.path, noise(), ts[0]))
    other, distances = dataclasses.replace(denoise, net=net), []
    for t, u in pairwise(ts):
        with torch.no_grad():
            (goal,), (pred,) = denoise(state.x, t, cond), other(state.x, t, cond)
        distances.append(relative(pred.eps, goal.eps))
        state = Ddim()(lambda x, t, known=goal: known, state, t, u, denoise.path, noise)  # type: ignore[misc]
    return sum(distances) / len(distances)


@pytest.mark.slow
def test_distillation_learns_and_leaves_the_teacher_alone() -> None:
    """A few steps on the built-in UNet: nearer to it, along an unseen run, than before."""
    model = open_model(find_model("still-life-unet"))
    before = {name: weight.clone() for name, weight in model.denoise.net.state_dict().items()}
    untrained = apart(model, LinFusion()(copy.deepcopy(model.denoise.net)), "a red cube")
    student, errors = Distilled(minutes=0.25, batch=1)(model, ["a red cube", "two blue balls"])
    trained = apart(model, student, "a red cube")
    assert errors and trained < 0.5 * untrained, (trained, untrained)
    assert len(self_attentions(student)) == len(self_attentions(model.denoise.net))
    after = model.denoise.net.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[n], w) for n, w in before.items())


def test_what_distillation_holds_is_foreseen() -> None:
    """The gradients and what is kept for them are counted, not only what a call takes."""
    model = open_model(find_model("still-life-unet"))
    one, two, four = (Distilled(batch=batch).held(model) for batch in (1, 2, 4))
    assert two - one > 1.5 * rehearsed(model) and abs((four - two) - 2 * (two - one)) < 0.2 * (four - two)
    assert all(not p.is_meta and not p.requires_grad for p in model.denoise.net.parameters())


def rehearsed(model: Any) -> int:
    """Bytes of one more picture in a call of the network."""
    own = model.defaults
    conds = [model.encode([""], key="pos")]
    needs = [sampling(model, conds, own.width, own.height, batch).peak for batch in (1, 2)]
    return needs[1] - needs[0]


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_fp8_networks(name: str) -> None:
    model = tiny(name) if name == "flux" else tiny_unet(name)
    plain = called(model)
    W8A8(kind="fp8", smallest=10**9)(model.denoise.net)
    assert torch.equal(called(model), plain)
    W8A8(kind="fp8", smallest=64)(model.denoise.net)
    assert 1e-4 < relative(called(model), plain) < 0.1
    with pytest.raises(ValueError, match="smallest must be 0 or more, got -1"):
        W8A8(kind="fp8", smallest=-1)
