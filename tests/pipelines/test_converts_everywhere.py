"""Converts of every layer of a network, in every family: they run, and the network stays near the one it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import tiny_unets
import torch
from agreement import relative
from sfumato.kernels.native.around import available as lacking
from sfumato.kernels.quant.int8 import available
from sfumato.pipelines.converts.int8 import Int8
from sfumato.pipelines.converts.products import Products
from sfumato.pipelines.converts.svdquant import SvdQuant
from sfumato.pipelines.converts.w8a8 import W8A8
from sfumato.pipelines.converts.weight_only import WeightOnly
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage

CONVERTS: dict[str, tuple[Any, float, str | None]] = {
    "int8": (Int8(smallest=1, skip=()), 0.2, available()),
    "products": (Products(smallest=1, skip=()), 1e-4, lacking()),
    "weight-only": (WeightOnly("int8", smallest=1, skip=()), 0.1, None),
    "w8a8": (W8A8("int8", smallest=1, skip=()), 0.2, None),
    "svdquant": (SvdQuant(bits=8, inputs=8, rank=4, smallest=1, skip=()), 0.2, None),
    "winograd": (Winograd(1), 1e-4, None),
}
"""How far each may go, and what it lacks here. Where a network begins and ends it would do better left alone."""
CHOSEN = [
    pytest.param(name, marks=pytest.mark.skipif(lack is not None, reason=str(lack)))
    for name, (_, _, lack) in CONVERTS.items()
]


@pytest.fixture(scope="module", params=tiny_unets.EVERY)
def tiny(request: pytest.FixtureRequest) -> Any:
    return tiny_unets.any_tiny(request.param)


@pytest.mark.parametrize("name", CHOSEN)
def test_every_network(tiny: Any, name: str) -> None:
    convert, most, _ = CONVERTS[name]
    net = copy.deepcopy(tiny.denoise.net)
    assert relative(tiny.made_by(convert(net)), tiny.made_by(tiny.denoise.net)) < most


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.kandinsky(tmp_path_factory.mktemp("kandinsky"))


@pytest.mark.parametrize("name", CHOSEN)
def test_a_network_that_hears_pictures(kandinsky: Path, name: str) -> None:
    def latents() -> torch.Tensor:
        return TextToImage(model, guidance=Cfg(1.0))("a red cube", width=64, height=64, steps=2).latents

    convert, most, _ = CONVERTS[name]
    model = open_model(kandinsky)
    plain = latents()
    convert(model.denoise.net)
    assert relative(latents(), plain) < most
