"""Converts that are worth it on a GPU, where there is none: the same network up to roundings, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from sfumato.kernels.quant import by_row
from sfumato.kernels.quant.by_row import ByRowLinear
from sfumato.pipelines.converts.channels_last import ChannelsLast
from sfumato.pipelines.converts.compile import Compile
from sfumato.pipelines.converts.fused_qkv import FusedQkv
from sfumato.pipelines.converts.svdquant import SvdQuant
from sfumato.pipelines.converts.w8a8 import W8A8
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches.attention import Attention
from sfumato.pipelines.placement import bring_back, offload_model
from sfumato.pipelines.rehearsal import sampling
from sfumato.pipelines.text_to_image import TextToImage
from tiny_nets import FAMILIES, tiny
from torch import nn

MADE = {
    "sd": tiny_models.stable_diffusion,
    "flux": tiny_models.flux,
    "pixart": lambda folder: tiny_models.pixart(folder, "PixArtSigmaPipeline"),
}
FUSED = {"sd", "flux", "pixart"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=MADE)
def model(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    return open_model(MADE[request.param](tmp_path / request.param))


def latents(model: Any, *patches: Any) -> torch.Tensor:
    pipe = TextToImage(model, patches=patches)
    return pipe("a red cube", width=64, height=64, steps=2, seed=7).latents


def numbers(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def test_exact(model: Any) -> None:
    plain, net, before = latents(model), model.denoise.net, numbers(model.denoise.net)
    held = {name: weight.requires_grad for name, weight in net.named_parameters()}
    assert ChannelsLast()(net) is net and FusedQkv()(net) is net
    assert numbers(net) == before and set(held.values()) == {False}
    assert not any(weight.requires_grad for weight in net.parameters())
    names = {name.rpartition(".")[2] for name, _ in net.named_modules()}
    assert {"to_qkv", "to_added_qkv"} & names or {"to_kv", "to_qkv"} <= names
    assert not {"to_k", "to_v", "add_q_proj"} & names
    convolutions = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    assert relative(latents(model), plain) < 1e-5
    assert relative(latents(model, Attention("dense")), plain) < 1e-5
    FusedQkv()(net)
    assert numbers(net) == before and relative(latents(model), plain) < 1e-5


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_eight_bits(kind: str, model: Any) -> None:
    plain, net = latents(model), model.denoise.net
    W8A8(kind, smallest=10**9)(net)
    assert torch.equal(latents(model), plain)
    FusedQkv()(net)
    W8A8(kind, smallest=64)(net)
    found = [name for name, module in net.named_modules() if isinstance(module, ByRowLinear)]
    assert any(name.endswith(("to_qkv", "to_kv")) for name in found)
    assert not any("embed" in name for name in found)
    ours = latents(model)
    assert 0 < relative(ours, plain) < (0.2 if kind == "fp8" else 0.06)
    assert torch.equal(latents(model), ours)


def test_four_bits_on_fused_projections(model: Any) -> None:
    plain, net = latents(model), model.denoise.net
    FusedQkv()(net)
    SvdQuant(inputs=8, smallest=64)(net)
    assert 0 < relative(latents(model), plain) < 0.5


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_other_families_stay_or_agree(name: str) -> None:
    model = tiny(name)
    x = model.noise(0)
    with torch.no_grad():
        plain = model.denoise(x, 0.6, *model.conds)
        FusedQkv()(ChannelsLast()(model.denoise.net))
        for ours, wanted in zip(model.denoise(x, 0.6, *model.conds), plain, strict=True):
            assert relative(ours.x0, wanted.x0) < 1e-4


def test_processors_of_others_are_left_alone(tmp_path: Any) -> None:
    net = open_model(tiny_models.stable_diffusion(tmp_path / "sd")).denoise.net
    mine = next(module for module in net.modules() if hasattr(module, "processor"))

    class Own(FusedAttnProcessor2_0):
        pass

    mine.set_processor(Own())
    FusedQkv()(net)
    assert type(mine.processor) is Own and isinstance(mine.to_q, nn.Linear)


def test_compiled_blocks_come_off_where_weights_come_and_go(model: Any) -> None:
    plain = latents(model)
    Compile("eager", sizes="seen")(model.denoise.net)
    assert relative(latents(model), plain) < 1e-5
    need = sampling(model, [model.encode(["a"], key="pos")], 64, 64, 1)
    offload_model(model, 10**7)
    assert not any("forward" in vars(module) for module in model.denoise.net.modules())
    assert relative(latents(model), plain) < 1e-5
    bring_back(model)
    assert sampling(model, [model.encode(["a"], key="pos")], 64, 64, 1) == need
    assert relative(latents(model), plain) < 1e-5


def test_blocks_in_8_bits_are_one_graph_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with Triton, which here is its interpreter: nothing of a layer breaks compiled code in two."""
    pytest.importorskip("triton")
    from torch._dynamo.utils import counters

    monkeypatch.setattr(by_row, "lacking", lambda: None)
    model = tiny("flux")
    net = W8A8("int8", smallest=64)(FusedQkv()(model.denoise.net)).half()
    for layer in net.modules():
        if isinstance(layer, ByRowLinear):
            layer.here = True
    model.denoise.dtype = torch.float16
    counters.clear()
    with torch.no_grad():
        plain = model.denoise(model.noise(0), 0.6, *model.conds)[0].x0
        Compile("aot_eager", sizes="seen")(net)
        assert relative(model.denoise(model.noise(0), 0.6, *model.conds)[0].x0, plain) < 1e-2
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]


@pytest.mark.slow
def test_tuned_code_and_sizes() -> None:
    """The compiler knows the settings; code for the size that was seen, then for all."""
    from diffusers.models.attention import BasicTransformerBlock

    torch.manual_seed(0)
    net = nn.Sequential(BasicTransformerBlock(16, 2, 8))
    with torch.no_grad():
        given = [torch.randn(1, tokens, 16) for tokens in (9, 5, 7)]
        plain = [net(x) for x in given]
        Compile(sizes="seen", tuned=True)(net)
        assert all(relative(net(x), wanted) < 1e-5 for x, wanted in zip(given, plain, strict=True))


def test_refused() -> None:
    for wrong, told in (
        (lambda: W8A8("fp4"), "kind must be one of fp8, int8, got 'fp4'"),
        (lambda: W8A8(smallest=-1), "smallest must be 0 or more, got -1"),
        (lambda: Compile(sizes="mine"), "sizes must be one of any, seen, got 'mine'"),
    ):
        with pytest.raises(ValueError, match=told):
            wrong()
