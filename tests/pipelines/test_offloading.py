"""Models whose weights come and go: the same latents in every family, with packed weights and LoRAs, and undone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import tiny_models
import tiny_unets
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from sfumato.kernels.native.around import available as lacking
from sfumato.kernels.offload import offloaded, restore
from sfumato.kernels.units import bytes_of, needing, own, units_of
from sfumato.pipelines.bridges import TextAdapter
from sfumato.pipelines.converts.flash_offload import FlashOffload
from sfumato.pipelines.converts.int8 import Int8
from sfumato.pipelines.converts.products import Products
from sfumato.pipelines.converts.superpipeline import Superpipeline
from sfumato.pipelines.converts.weight_only import WeightOnly
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.placement import offload_model
from sfumato.pipelines.rehearsal import decoding, sampling
from sfumato.pipelines.text_to_image import TextToImage

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd": tiny_models.stable_diffusion,
    "flux": tiny_models.flux,
    "pixart": lambda folder: tiny_models.pixart(folder, "PixArtSigmaPipeline"),
}
EVERY: dict[str, Callable[[Path], Path]] = {
    **FAMILIES,
    "sd3": tiny_families.sd3,
    "kandinsky": tiny_families.kandinsky,
    "hunyuan_dit": lambda folder: tiny_families.hunyuan_dit(folder, DDPMScheduler(), False),
    "lumina2": tiny_families.lumina2,
    "lumina_next": lambda folder: tiny_families.lumina_next(folder, 4),
    "sana": lambda folder: tiny_families.sana(folder, FlowMatchEulerDiscreteScheduler(shift=3.0)),
}
NETS = {"sd": "unet", "flux": "transformer", "pixart": "transformer"}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    return FAMILIES[family](tmp_path / family)


def made(model: Any) -> torch.Tensor:
    return TextToImage(model, guidance=Cfg(1.0))("a red cube", width=64, height=64, steps=2, seed=7).pixels


def weights_of(net: Any) -> int:
    return sum(t.numel() * t.element_size() for t in net.parameters())


def largest(net: Any) -> int:
    return max(t.numel() * t.element_size() for t in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opened_so(folder: Path, dtype: torch.dtype) -> None:
    plain = open_model(folder, dtype=dtype)
    net = plain.denoise.net
    budget = max(weights_of(net) // 2, 2 * largest(net))
    model = open_model(folder, dtype=dtype, offload=budget)
    assert torch.equal(made(model), made(plain))
    done = offloaded(model.denoise.net)
    assert done is not None and done.pool.tally.loads > len(done.route.units)
    assert done.pool.tally.peak <= budget
    assert model.info() == plain.info()
    restore(model.denoise.net)
    pairs = zip(model.denoise.net.parameters(), net.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.fixture(scope="module", params=EVERY)
def everywhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return EVERY[request.param](tmp_path_factory.mktemp(request.param) / "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_every_family(everywhere: Path, dtype: torch.dtype) -> None:
    same_bits(everywhere, dtype)


@pytest.mark.parametrize("name", ["sd3", "pixart"])
def test_what_stays_wide_in_half_precision(name: str, tmp_path: Path) -> None:
    """T5's last layer is float32 in float16 alone."""
    same_bits(EVERY[name](tmp_path / name), torch.float16)


def same_bits(folder: Path, dtype: torch.dtype) -> None:
    plain = open_model(folder, dtype=dtype)
    wanted = made(plain)
    assert bool(wanted.isfinite().all())
    least = max(bytes_of(unit) for part in plain.parts.values() for _, unit in units_of(part.net, 1)[0])
    for budget in (2 * least, 10**9):  # the second so large that hardly anything is worth moving
        model = open_model(folder, dtype=dtype, offload=budget)
        same = torch.equal(made(model), wanted)
        assert same
        for name, part in model.parts.items():
            assert types_of(part.net) == types_of(plain.parts[name].net)


def types_of(net: Any) -> dict[str, torch.dtype]:
    return {name: t.dtype for name, t in (*net.named_parameters(), *net.named_buffers())}


@contextmanager
def only_while_called(net: torch.nn.Module, bucket: int) -> Iterator[None]:
    """The worst that offloading may do: a unit's weights come as it is called, and are gone right after."""
    hooks: list[Any] = []
    for _, unit in units_of(net, bucket)[0]:
        resting = Resting(unit)
        resting.leave()
        for part in needing(unit):
            hooks.append(part.register_forward_pre_hook(resting.enter))
            hooks.append(part.register_forward_hook(resting.leave))
    yield
    for hook in hooks:
        hook.remove()


class Resting:
    """A unit's weights, NaN unless it or a layer in it is being called."""

    def __init__(self, unit: torch.nn.Module) -> None:
        every = [t for part in unit.modules() for _, t in own(part) if t.is_floating_point()]
        self.held, self.calls = [(t, t.detach().clone()) for t in every], 1

    def enter(self, *_: Any) -> None:
        self.calls += 1
        for tensor, kept in self.held:
            tensor.data.copy_(kept)

    def leave(self, *_: Any) -> None:
        self.calls -= 1
        for tensor, _kept in self.held:
            if not self.calls:
                tensor.data.fill_(math.nan)


def whatever_goes_is_back(net: torch.nn.Module, call: Callable[[Any], torch.Tensor]) -> None:
    wanted = call(net)
    for part in (2, 4, 32, bytes_of(net)):
        again = copy.deepcopy(net)
        with only_while_called(again, bytes_of(net) // part):
            same = torch.equal(call(again), wanted)
        assert same


@pytest.mark.parametrize("name", tiny_unets.EVERY)
def test_whatever_goes_is_back_when_it_is_read(name: str) -> None:
    tiny = tiny_unets.any_tiny(name)
    whatever_goes_is_back(tiny.denoise.net, tiny.made_by)


@pytest.mark.parametrize("name", ["sd unet", "sdxl unet", "svd unet", "pixart", "hunyuan_dit"])
@pytest.mark.parametrize("convert", [Int8(smallest=64), Products(smallest=64), Winograd(8)])
def test_blocks_that_go_the_shorter_way_find_their_weights(name: str, convert: Any) -> None:
    if lacking() is not None and not isinstance(convert, Winograd):
        pytest.skip(str(lacking()))
    tiny = tiny_unets.any_tiny(name)
    whatever_goes_is_back(convert(tiny.denoise.net), tiny.made_by)


def test_a_bridge_finds_its_weights() -> None:
    states = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    whatever_goes_is_back(TextAdapter(16, 16, 24), lambda net: net(states))


@pytest.mark.parametrize("kind", ["superpipeline", "flash"])
def test_converts(folder: Path, family: str, kind: str) -> None:
    model = open_model(folder)
    wanted, net = made(model), model.denoise.net
    gb = max(weights_of(net) // 2, 2 * largest(net)) / 1e9
    home = str(folder / NETS[family])
    convert = Superpipeline(gb) if kind == "superpipeline" else FlashOffload(gb, home)
    assert convert(net) is net and offloaded(net) is not None
    assert torch.equal(made(model), wanted)
    other = Superpipeline(gb) if kind == "flash" else FlashOffload(gb, home)
    with pytest.raises(ValueError, match="both need the slot 'placement': drop one"):
        other(net)
    with pytest.raises(ValueError, match="convert it first, offload it last"):
        WeightOnly("int8", smallest=64)(net)
    restore(net)
    assert torch.equal(made(model), wanted) and offloaded(net) is None


def test_neutral_and_refused(tmp_path: Path) -> None:
    net = open_model(tiny_models.flux(tmp_path / "flux")).denoise.net
    for convert in (Superpipeline(), FlashOffload()):
        assert convert(net) is net and offloaded(net) is None
    for wrong in (Superpipeline, FlashOffload):
        with pytest.raises(ValueError, match="budget must be 0 or more GB, got -1"):
            wrong(-1)
        with pytest.raises(ValueError, match="is below the"):
            wrong(1e-7)(net)
    with pytest.raises(
        ValueError, match="device must be cpu, cuda, cuda:1, mps or xpu, or empty, got 'banana'"
    ):
        Superpipeline(1, "banana")
    with pytest.raises(ValueError, match="device must be one of this machine, got 'cuda:99'; leave it out"):
        Superpipeline(1, "cuda:99")(net)
    assert offloaded(net) is None
    with pytest.raises(BadInput, match=r"offload: .*a budget of 10 bytes is below"):
        open_model(tmp_path / "flux", offload=10)
    with pytest.raises(BadInput, match="must be a number of bytes"):
        open_model(tmp_path / "flux", offload=-1)


def test_packed_weights_rest_too(folder: Path) -> None:
    model = open_model(folder)
    net = WeightOnly("int8", smallest=64)(model.denoise.net)
    wanted = made(model)
    FlashOffload(weights_of(net) / 1e9)(net)
    assert torch.equal(made(model), wanted)


def test_loras_act_on_weights_that_come_and_go(tmp_path: Path) -> None:
    from sfumato.pipelines.converts._adapters import merge, put_on, take_off, weigh
    from sfumato.pipelines.converts._lora_files import Pair

    plain, moved = (open_model(tiny_models.stable_diffusion(tmp_path / "sd")) for _ in range(2))
    bare = made(plain)
    offload_model(moved, 200_000)
    name = next(n for n, _ in plain.denoise.net.named_modules() if n.endswith("attn1.to_q"))
    layer = plain.denoise.net.get_submodule(name)
    pair = Pair(torch.ones(2, layer.in_features), torch.ones(layer.out_features, 2))
    for model in (plain, moved):
        put_on(model.denoise.net, "one", {name: pair})
        weigh(model.denoise.net, {"one": 1.0})
    assert torch.equal(made(plain), made(moved)) and not torch.equal(made(moved), bare)
    with pytest.raises(BadInput, match="offloaded; weigh them instead of merging"):
        merge(moved.denoise.net, {"one": 1.0})
    take_off(moved.denoise.net, ["one"])
    assert torch.equal(made(moved), bare)


def test_an_open_model_is_moved_and_squeezed(folder: Path) -> None:
    model = open_model(folder)
    wanted = made(model)
    whole = sum(weights_of(part.net) for part in model.parts.values())
    offload_model(model, whole)
    assert torch.equal(made(model), wanted)
    done = offloaded(model.denoise.net)
    assert done is not None
    least = max(unit.nbytes for route in done.pool._routes for unit in route.units)
    offload_model(model, least)
    before = done.pool.tally.loads
    assert torch.equal(made(model), wanted) and done.pool.tally.loads > before
    with pytest.raises(BadInput, match="below the"):
        offload_model(model, least - 1)


def test_rehearsal_leaves_no_trace_and_grows_with_size(folder: Path) -> None:
    model = open_model(folder)
    wanted = made(model)
    conds = [model.encode([""], key="pos")]
    one, four = (sampling(model, conds, 64, 64, batch) for batch in (1, 4))
    small, large = decoding(model, 64, 64), decoding(model, 128, 128)
    assert 0 < one.peak < four.peak <= 6 * one.peak
    assert 2.5 * small.peak < large.peak < 6 * small.peak
    assert four.work["product"] == pytest.approx(4 * one.work["product"], rel=0.3)
    assert torch.equal(made(model), wanted)
