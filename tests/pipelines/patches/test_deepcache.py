"""deepcache: against the two passes written by hand, in the layouts of every UNet, and beside other patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import relative
from cached import OneByOne, positive, positive_beside_the_other, run
from patched import broken, picture, saved, traceless
from sfumato.pipelines.adapters import open_control, open_t2i_adapter
from sfumato.pipelines.families._denoiser import NetDenoiser
from sfumato.pipelines.guidance.interval import Interval
from sfumato.pipelines.patches._skips import inside
from sfumato.pipelines.patches.controlnet import ControlNet
from sfumato.pipelines.patches.deepcache import DeepCache
from sfumato.pipelines.patches.t2i_adapter import T2IAdapter
from sfumato.pipelines.samplers.heun import heun
from sfumato.pipelines.spacing import Spacing, full_steps
from tiny_nets import Tiny
from tiny_unets import NAMES, tiny_unet, unet_call
from torch import Tensor, nn

STEPS = 6
BRANCHES = {"sd": 6, "sdxl": 6, "kandinsky": 4, "animatediff": 4, "svd": 4}
EVERY = [(name, branch) for name, count in BRANCHES.items() for branch in range(count)]


@pytest.fixture(scope="module")
def made() -> dict[str, Tiny]:
    return {name: tiny_unet(name) for name in NAMES}


class TwoPasses:
    """Branch 0 by hand: the whole network at every third call, else its first convolution and last layer.

    With `line` the deep features go on along the line through the last two that were computed.
    """

    def __init__(self, line: bool = False) -> None:
        self.calls = 0
        self.line = line
        self.deep = self.before = torch.empty(0)

    def __call__(self, net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        last, first = net.up_blocks[-1], net.conv_in(x)
        if self.calls % 3 == 1:

            def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                # what is joined with the skip connection
                self.before, self.deep = self.deep, args[0][:, : -first.shape[1]]

            handle = last.resnets[-1].register_forward_pre_hook(keep)
            out = unet_call(net, x, t, embeds)
            handle.remove()
            return out
        clock = net.time_embedding(net.time_proj(torch.full((len(x),), round(1000 * t) - 1)))
        deep, ahead = self.deep, (self.calls - 1) % 3
        if self.line and self.calls > 4:
            deep = deep + (deep - self.before) * ahead / 3
        h = last.resnets[-1](torch.cat([deep, first], dim=1), clock)
        if "attentions" in last._modules:
            h = last.attentions[-1](h, encoder_hidden_states=embeds["text"], return_dict=False)[0]
        answer: Tensor = net.conv_out(net.conv_act(net.conv_norm_out(h)))
        return answer


@pytest.mark.parametrize("name", ["sd", "sdxl", "kandinsky"])
def test_is_two_passes_by_hand(made: dict[str, Tiny], name: str) -> None:
    model = made[name]
    by_hand = NetDenoiser(model.denoise.net, model.denoise.path, torch.float32, "v_prediction", TwoPasses())
    assert relative(run(model, DeepCache(3, start=0, order=0)), run(model, denoise=by_hand)) < 1e-5
    along = NetDenoiser(
        model.denoise.net, model.denoise.path, torch.float32, "v_prediction", TwoPasses(line=True)
    )
    forecast = run(model, denoise=along)
    assert (
        relative(run(model, DeepCache(3, start=0, order=1)), forecast)
        < 1e-5
        < relative(run(model, DeepCache(3, start=0, order=0)), forecast)
    )


@pytest.mark.parametrize(("name", "branch"), EVERY)
def test_behaves(made: dict[str, Tiny], name: str, branch: int) -> None:
    model, patch = made[name], DeepCache(2, branch=branch, order=branch % 3)
    net, plain = model.denoise.net, run(model)
    with traceless(net):
        assert torch.equal(run(model, DeepCache(1, branch=branch)), plain)
        felt = run(model, patch)
        assert torch.isfinite(felt).all() and relative(felt, plain) > 1e-4
        assert torch.equal(run(model, patch), felt)
        two = run(model, patch, count=2)
        assert relative(two, torch.cat([felt, run(model, patch, seed=1)])) < 1e-4
        assert relative(run(model, patch, denoise=OneByOne(model.denoise)), felt) < 1e-4
        with pytest.raises(ZeroDivisionError), patch(net):
            raise ZeroDivisionError
        with broken(net), pytest.raises(ZeroDivisionError):
            run(model, patch)
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize("name", NAMES)
def test_branches_never_mix(made: dict[str, Tiny], name: str) -> None:
    model, patch = made[name], DeepCache(2)
    alone = run(model, patch, guidance=positive)
    assert relative(run(model, patch, guidance=positive_beside_the_other), alone) < 1e-4
    apart = OneByOne(model.denoise)
    assert relative(run(model, patch, guidance=positive_beside_the_other, denoise=apart), alone) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_that_comes_later(made: dict[str, Tiny], name: str) -> None:
    """Guidance in an interval begins between two full steps: the negative's first call is whole, and only its rows."""
    model, patch, guidance = made[name], DeepCache(5, start=0), Interval(3.0, low=0.0, high=1.5)
    together = run(model, patch, guidance=guidance)
    apart = run(model, patch, guidance=guidance, denoise=OneByOne(model.denoise))
    assert relative(together, apart) < 1e-4
    assert torch.isfinite(run(model, patch, sampler=heun)).all()


@pytest.mark.parametrize(("name", "branch"), EVERY)
def test_the_deep_part_runs_at_full_steps_only(made: dict[str, Tiny], name: str, branch: int) -> None:
    model = made[name]
    deep, seen = inside(model.denoise.net, branch), Counter[int]()
    handles = []
    for number, module in enumerate(deep.skipped):
        inner = next(m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        handles.append(inner.register_forward_hook(lambda m, a, o, number=number: seen.update([number])))
    run(model, DeepCache(3, branch=branch, start=0))
    for handle in handles:
        handle.remove()
    assert seen == dict.fromkeys(range(len(deep.skipped)), 2)


def test_deeper_branches_leave_less_out(made: dict[str, Tiny]) -> None:
    sizes = [
        sum(w.numel() for m in inside(made["sd"].denoise.net, branch).skipped for w in m.parameters())
        for branch in range(BRANCHES["sd"])
    ]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    with pytest.raises(ValueError, match=r"branch must be in 0..5 in this network, got 6"):
        run(made["sd"], DeepCache(branch=6))


@pytest.mark.parametrize("patch", [DeepCache(2, center=2, power=1.4), DeepCache(3, start=0.5)])
def test_full_steps_are_those_of_the_spacing(made: dict[str, Tiny], patch: DeepCache) -> None:
    model, seen = made["sd"], []
    mid = model.denoise.net.get_submodule("mid_block.resnets.0.conv1")
    handle = mid.register_forward_hook(lambda *_: seen.append(1))
    run(model, patch)
    handle.remove()
    spacing = Spacing(patch.interval, patch.start, patch.power, patch.center)
    assert len(seen) == len(full_steps(spacing, STEPS)) < STEPS


@pytest.mark.parametrize("branch", [0, 2, 5])
def test_beside_adapters(made: dict[str, Tiny], branch: int, tmp_path: Path) -> None:
    """Control networks add to what is left out, too; an adapter adds in place. In whichever order they are given."""
    from diffusers import ControlNetModel
    from diffusers import T2IAdapter as Adapter

    model = made["sd"]
    net: Any = model.denoise.net
    torch.manual_seed(0)
    control = open_control(
        saved(
            ControlNetModel.from_unet(net, conditioning_embedding_out_channels=(4, 4, 4, 8)), tmp_path / "c"
        )
    )
    adapter = open_t2i_adapter(
        saved(Adapter(channels=[16, 32], num_res_blocks=1, downscale_factor=8), tmp_path / "a")
    )
    image = picture(1, (96, 64))
    for other in (ControlNet(control, image), T2IAdapter(adapter, image)):
        felt = run(model, DeepCache(2, branch=branch), other)
        assert torch.isfinite(felt).all()
        assert relative(felt, run(model, DeepCache(2, branch=branch))) > 1e-3
        assert relative(run(model, other, DeepCache(2, branch=branch)), felt) < 1e-5
