"""Networks in 8 bits and with Winograd's convolutions: near the network they were made from, in every family."""

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from diffusers import DiTTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from sfumato.kernels.dense import DenseConv2d, DenseLinear
from sfumato.kernels.native.around import available as lacking
from sfumato.kernels.quant.int8 import available
from sfumato.kernels.quant.layers import Int8Conv2d, Int8Linear, int8
from sfumato.kernels.quant.packed import QuantConv2d, QuantLinear
from sfumato.kernels.quant.winograd_int8 import Tiled
from sfumato.kernels.winograd import WinogradConv2d
from sfumato.pipelines.converts import _around, _attending
from sfumato.pipelines.converts.int8 import Int8
from sfumato.pipelines.converts.products import Products
from sfumato.pipelines.converts.svdquant import SvdQuant
from sfumato.pipelines.converts.w8a8 import W8A8
from sfumato.pipelines.converts.weight_only import WeightOnly
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import find_model, open_model
from sfumato.pipelines.patches.int8_attention import Int8Attention
from sfumato.pipelines.text_to_image import TextToImage

needs_cpp = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
needs_int8 = pytest.mark.skipif(available() is not None, reason=str(available()))
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd": tiny_models.stable_diffusion,
    "flux": tiny_models.flux,
    "pixart": lambda folder: tiny_models.pixart(folder, "PixArtSigmaPipeline"),
}


def latents(model: Any, count: int = 1, seed: int = 7) -> torch.Tensor:
    return TextToImage(model, guidance=Cfg(1.0))(
        "a red cube", width=64, height=64, steps=2, seed=seed, count=count
    ).latents


def kinds(net: Any) -> set[type]:
    return {type(module) for module in net.modules()}


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(Int8(smallest=64), marks=needs_int8),
        pytest.param(Products(smallest=64), marks=needs_cpp),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_linear_layers(name: str, convert: Any, tmp_path: Path) -> None:
    exact = isinstance(convert, Products)
    model = open_model(FAMILIES[name](tmp_path / name))
    plain, net = latents(model), model.denoise.net
    ends = {n: m for n, m in net.named_modules() if any(fnmatchcase(n, end) for end in convert.skip)}
    replace(convert, smallest=10**9)(net)
    assert torch.equal(latents(model), plain)
    assert convert(net) is net and (DenseLinear if exact else Int8Linear) in kinds(net)
    assert ((DenseConv2d if exact else Int8Conv2d) in kinds(net)) == (name == "sd")
    if exact:
        assert all(net.get_submodule(n) is m for n, m in ends.items())
    assert not any(type(net.get_submodule(n)) in (Int8Linear, Int8Conv2d) for n in ends)
    ours = latents(model)
    assert 0 < relative(ours, plain) < (1e-4 if exact else 0.06)
    assert torch.equal(latents(model), ours)
    batch, alone = latents(model, count=2)[1:], latents(model, seed=8)
    if exact:
        assert relative(batch, alone) < 1e-5
    elif lacking() is None:
        assert torch.equal(batch, alone)


@needs_cpp
@pytest.mark.parametrize("name", ["still-life", "still-life-unet"])
def test_in_8_bits_a_picture_is_the_same_in_any_batch(name: str) -> None:
    """To the bit, from the text to the latents, on any number of threads; also with attention in 8 bits."""
    model = open_model(find_model(name))
    for convert in (Int8(), Winograd()):
        convert(model.denoise.net)
    make, texts = TextToImage(model), ["a red cube", "a large green cone left of a blue sphere", "two balls"]
    threads = torch.get_num_threads()
    try:
        with Int8Attention()(model.denoise.net):
            torch.set_num_threads(2)
            batch = make(texts, seed=[1, 2, 3], steps=4).latents
            torch.set_num_threads(1)
            alone = [make(text, seed=seed, steps=4).latents for seed, text in enumerate(texts, 1)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(batch, torch.cat(alone))


@pytest.mark.parametrize("convert", [SvdQuant(), SvdQuant(inputs=8), W8A8()])
def test_networks_that_round_what_their_layers_get_are_steady_too(convert: Any) -> None:
    model = open_model(find_model("still-life"))
    convert(model.denoise.net)
    make, texts = TextToImage(model), ["a red cube", "two balls"]
    batch = make(texts, seed=[1, 2], steps=2).latents
    assert torch.equal(
        batch, torch.cat([make(text, seed=s, steps=2).latents for s, text in enumerate(texts, 1)])
    )


@pytest.mark.parametrize("convert", [Winograd(8), pytest.param(Products(smallest=64), marks=needs_cpp)])
def test_packed_layers_stay(convert: Any, tmp_path: Path) -> None:
    model = open_model(tiny_models.stable_diffusion(tmp_path / "sd"))
    net = WeightOnly("int8", smallest=64, skip=())(model.denoise.net)
    packed = {n: m for n, m in net.named_modules() if isinstance(m, QuantLinear | QuantConv2d)}
    before = latents(model)
    convert(net)
    assert packed and all(net.get_submodule(n) is m for n, m in packed.items())
    assert relative(latents(model), before) < 1e-4


def test_winograd(tmp_path: Path) -> None:
    model = open_model(tiny_models.stable_diffusion(tmp_path / "sd"))
    plain, net = latents(model), model.denoise.net
    Winograd(10**6)(net)
    assert torch.equal(latents(model), plain)
    strided = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    Winograd(8)(net)
    assert WinogradConv2d in kinds(net) and strided and all(m in set(net.modules()) for m in strided)
    ours = latents(model, count=2)
    assert 0 < relative(ours[:1], plain) < 1e-4
    assert relative(ours[1:], latents(model, seed=8)) < 1e-5


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(Int8(), marks=needs_int8),
        pytest.param(Products(), marks=needs_cpp),
        Winograd(),
    ],
)
def test_refused(convert: Any, tmp_path: Path) -> None:
    model = open_model(tiny_models.stable_diffusion(tmp_path / "sd"), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"in float32 on a processor, this one is torch\.bfloat16 on cpu"):
        convert(model.denoise.net)
    for wrong in (
        lambda: Int8(smallest=-1),
        lambda: Int8(tiled=-1),
        lambda: Winograd(0),
        lambda: Products(-1),
    ):
        with pytest.raises(ValueError, match="or more, got"):
            wrong()


@needs_cpp
@pytest.mark.parametrize("convert", [Int8(smallest=64), Winograd(8), Products(smallest=64)])
def test_blocks_go_the_shorter_way_and_compute_the_same(convert: Any, tmp_path: Path) -> None:
    """Each block that was given another class against the class that it had, over the same layers."""
    net = open_model(tiny_models.stable_diffusion(tmp_path / "sd")).denoise.net
    convert(net)
    torch.manual_seed(0)
    x, t, text = (
        torch.randn(2, 4, 16, 16),
        torch.tensor([500, 20]),
        torch.randn(2, 7, net.config.cross_attention_dim),
    )
    ours = net(x, t, text, return_dict=False)[0]
    names = lengthened(net)
    assert ({"Residual", "Repeated"} <= names) == (not isinstance(convert, Products))
    transformers = {"GatedGEGLU", "Feeding", "Joined", "Straight", "Slender"}
    if isinstance(convert, Int8):
        transformers.remove("Slender")  # what stays in float32 is steady in any batch
    assert (transformers <= names) == (not isinstance(convert, Winograd))
    longer = net(x, t, text, return_dict=False)[0]
    # rounding to 8 bits sees sums in another order, and a picture as a whole where it saw rows
    assert relative(ours, longer) < (0.04 if isinstance(convert, Int8) else 1e-5)


@needs_cpp
@pytest.mark.parametrize("most", [0, 10_000, 10**9])
def test_convolutions_go_by_tiles_up_to_their_bound(most: int, tmp_path: Path) -> None:
    net = open_model(tiny_models.stable_diffusion(tmp_path / "sd")).denoise.net
    Int8(smallest=64, tiled=most)(net)
    layers = [m for m in net.modules() if isinstance(m, Int8Conv2d) and not m.pointwise]
    tiled = {m: 9 * m.in_channels * m.out_channels for m in layers if isinstance(m.product, Tiled)}
    left = [m for m in layers if m not in tiled and m.geometry.stride == (1, 1) and m.in_channels >= 32]
    assert all(size <= most for size in tiled.values())
    assert all(9 * m.in_channels * m.out_channels > most for m in left)
    assert bool(tiled) == (most > 0) and bool(left) == (most < 10**9)


def lengthened(net: torch.nn.Module) -> set[str]:
    """Each block gets the class back that it had; the names of those it was given."""
    given = {_around.__name__, _attending.__name__}
    shorter = [m for m in net.modules() if type(m).__module__ in given]
    names = {type(m).__name__ for m in shorter}
    for module in shorter:
        there = ("diffusers.", "torch.")
        module.__class__ = next(c for c in type(module).__mro__ if c.__module__.startswith(there))
    for module in net.modules():
        if "processor" in vars(module):
            module.processor = AttnProcessor2_0()
    return names


@needs_cpp
@pytest.mark.parametrize("convert", [Int8(smallest=64), Products(smallest=64)])
def test_blocks_that_follow_the_time_go_the_shorter_way(convert: Any) -> None:
    exact = isinstance(convert, Products)
    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        num_layers=2,
        sample_size=16,
        num_embeds_ada_norm=10,
        norm_elementwise_affine=False,
    ).eval()
    for block in net.transformer_blocks:  # a new network's gains are near zero
        block.norm1.linear.weight.data.mul_(20)
    given = (torch.randn(3, 4, 16, 16), torch.tensor([5, 500, 900]), torch.tensor([1, 2, 3]))
    with torch.no_grad():
        plain = net(*given, return_dict=False)[0]
        convert(net)
        ours = net(*given, return_dict=False)[0]
        for i in range(3):
            alone = net(*(part[i : i + 1] for part in given), return_dict=False)[0]
            assert relative(alone, ours[i : i + 1]) < 1e-5 if exact else torch.equal(alone, ours[i : i + 1])
        names = {"Adaptive", "Feeding", "GatedGELU"} | ({"Slender"} if exact else set())
        assert names <= lengthened(net)
        longer = net(*given, return_dict=False)[0]
    assert relative(ours, longer) < (1e-5 if exact else 0.02)
    assert 0 < relative(ours, plain) < (1e-5 if exact else 0.06)


@needs_cpp
@pytest.mark.parametrize("rows", [(0,), (1,), (2,), (3, 4), (33,)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_slender_layer_is_its_layer(rows: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(40, 24, bias=bias), torch.randn(40, *rows).movedim(0, -1)
    wanted = layer(x)
    exchanged = int8(torch.nn.Linear(8, 8))
    assert exchanged is not None
    ours = _around.gathered(torch.nn.Sequential(layer, exchanged))[0]
    assert type(ours) is _around.Slender
    torch.testing.assert_close(ours(x), wanted)
    assert ours(x).shape == wanted.shape and ours(x).is_contiguous()


@needs_cpp
def test_winograd_of_a_decoder(tmp_path: Path) -> None:
    model = open_model(tiny_models.stable_diffusion(tmp_path / "sd"))
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        plain = model.codec.vae.decoder(z)
        Winograd(4)(model.codec.vae)
        assert {"Residual", "Following"} <= {type(m).__name__ for m in model.codec.vae.decoder.modules()}
        assert relative(model.codec.vae.decoder(z), plain) < 1e-4
