"""Compiled blocks: right, one graph for many layers and sizes, and patches that come and go without new graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from agreement import relative
from sfumato.pipelines.converts import compile as converts
from sfumato.pipelines.converts.compile import Compile
from sfumato.pipelines.errors import NoSite
from sfumato.pipelines.patches.attention import Attention
from sfumato.pipelines.patches.first_block import FirstBlock
from sfumato.pipelines.protocols import Patch
from tiny_nets import FAMILIES, Tiny, tiny
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def called(model: Tiny, *patches: Patch, larger: int = 0) -> Tensor:
    shape = (*model.shape[:-2], model.shape[-2] + larger, model.shape[-1] + larger)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with ExitStack() as stack, torch.no_grad():
        for patch in patches:
            stack.enter_context(patch(model.denoise.net))
        return torch.cat([pred.x0 for pred in model.denoise(x, 0.6, *model.conds)])


def deep(monkeypatch: pytest.MonkeyPatch, layers: int) -> Tiny:
    kind, config, *rest = FAMILIES["flux"]
    config = {**config, "num_layers": layers, "num_single_layers": 1}
    monkeypatch.setitem(FAMILIES, "flux", (kind, config, *rest))
    return tiny("flux")


@pytest.mark.slow
def test_sizes_layers_and_patches_take_no_new_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for layers in (2, 4):
        torch._dynamo.reset()
        model, before = deep(monkeypatch, layers), graphs()
        plain, wide, wider = called(model), called(model, larger=2), called(model, larger=4)
        dense = called(model, Attention("dense"))
        assert Compile("eager")(model.denoise.net) is model.denoise.net
        assert relative(called(model), plain) < 1e-6
        made.append(graphs() - before)
        assert relative(called(model, larger=4), wider) < 1e-6
        assert relative(called(model, larger=2), wide) < 1e-6
        assert graphs() - before == made[-1], "other sizes compile nothing"
        assert relative(called(model, Attention("dense")), dense) < 1e-6
        called(model)
        patched = graphs()
        for _ in range(2):
            assert relative(called(model, Attention("dense")), dense) < 1e-6
            assert relative(called(model, Attention("linear")), plain) > 1e-3
            assert relative(called(model, FirstBlock()), plain) < 1e-6
            assert relative(called(model), plain) < 1e-6
        assert graphs() == patched, "a patch that was seen once, and its end, compile nothing"
    assert made[0] == made[1], "twice the layers, the same graphs"


@pytest.mark.slow
def test_a_unet_has_more_kinds_than_the_compiler_keeps_graphs() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    widths = [(8, 8 * (i + 1)) for i in range(9)]
    net = nn.Sequential(
        *(ResnetBlock2D(in_channels=a, out_channels=b, groups=4, temb_channels=None) for a, b in widths)
    )
    x = torch.randn(1, 8, 4, 4)
    plain = [block(x, None) for block in net]
    Compile("eager")(net)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        assert all(relative(block(x, None), p) < 1e-6 for block, p in zip(net, plain, strict=True))


@pytest.mark.slow
def test_machine_code() -> None:
    """By inductor: the same numbers, up to the order of sums."""
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(0)
    net = nn.Sequential(*(BasicTransformerBlock(16, 2, 8) for _ in range(2)))
    with torch.no_grad():
        x = torch.randn(1, 9, 16)
        plain = net(x)
        Compile()(net)
        assert relative(net(x), plain) < 1e-5


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="backend must be one of inductor, ahead, aot_eager, eager, got 'fast'"
    ):
        Compile("fast")
    with pytest.raises(NoSite, match="has no site 'blocks'"):
        Compile("eager")(torch.nn.Linear(2, 2))
    model: Any = tiny("flux")
    monkeypatch.setattr(converts.shutil, "which", lambda name: None)
    with pytest.raises(
        ValueError, match=r"compile: needs a C\+\+ compiler .*; install one or leave compile out"
    ):
        Compile()(model.denoise.net)
    assert not any("forward" in vars(module) for module in model.denoise.net.modules())
