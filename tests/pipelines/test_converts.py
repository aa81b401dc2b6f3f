"""Networks in 8 bits and with Winograd's convolutions: near the network they were made from, in every family."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from sfumato.kernels.quant.int8 import available
from sfumato.kernels.quant.layers import Int8Conv2d, Int8Linear
from sfumato.kernels.winograd import WinogradConv2d
from sfumato.pipelines.converts.int8 import Int8
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage

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


@needs_int8
@pytest.mark.parametrize("name", FAMILIES)
def test_int8(name: str, tmp_path: Path) -> None:
    model = open_model(FAMILIES[name](tmp_path / name))
    plain, net = latents(model), model.denoise.net
    ends = {n: m for n, m in net.named_modules() if any(fnmatchcase(n, pattern) for pattern in Int8().skip)}
    Int8(smallest=10**9)(net)
    assert torch.equal(latents(model), plain)
    assert Int8(smallest=64)(net) is net and Int8Linear in kinds(net)
    assert (Int8Conv2d in kinds(net)) == (name == "sd")
    assert all(net.get_submodule(n) is m for n, m in ends.items())
    ours = latents(model)
    assert 0 < relative(ours, plain) < 0.06
    assert torch.equal(latents(model), ours)


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


@pytest.mark.parametrize("convert", [pytest.param(Int8(), marks=needs_int8), Winograd()])
def test_refused(convert: Any, tmp_path: Path) -> None:
    model = open_model(tiny_models.stable_diffusion(tmp_path / "sd"), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"in float32 on a processor, this one is torch\.bfloat16 on cpu"):
        convert(model.denoise.net)
    for wrong in (lambda: Int8(smallest=-1), lambda: Winograd(0)):
        with pytest.raises(ValueError, match="or more, got"):
            wrong()
