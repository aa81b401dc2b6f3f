"""T2I-Adapter against diffusers, in Stable Diffusion and the layout of SDXL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, opened
from patched import behaves, latents, picture, saved
from sfumato.pipelines.adapters import open_control, open_t2i_adapter
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.patches.controlnet import ControlNet
from sfumato.pipelines.patches.t2i_adapter import T2IAdapter


def adapter_folder(folder: Path, **changes: Any) -> Path:
    from diffusers import T2IAdapter as Adapter

    torch.manual_seed(0)
    config = {
        "channels": [16, 32],
        "num_res_blocks": 1,
        "downscale_factor": 8,
        "adapter_type": "full_adapter",
    }
    return saved(Adapter(**{**config, **changes}), folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapter")


@pytest.fixture(scope="module", params=["full_adapter", "light_adapter"])
def trio(request: Any, home: Path) -> tuple[Any, Any, Any]:
    """Our model, their pipeline, and our adapter."""
    from diffusers import StableDiffusionAdapterPipeline
    from diffusers import T2IAdapter as Adapter

    model, plain = opened(tiny_models.stable_diffusion(home / "sd"))
    folder = adapter_folder(home / request.param, adapter_type=request.param)
    components = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    pipe = StableDiffusionAdapterPipeline(
        **components, adapter=Adapter.from_pretrained(folder), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return model, pipe, open_t2i_adapter(folder)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(trio: tuple[Any, Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    model, pipe, adapter = trio
    image = picture(count, size)
    case = Case(
        patches=(T2IAdapter(adapter, image, 0.8),), ask={"image": image, "adapter_conditioning_scale": 0.8}
    )
    agree(model, pipe, scale, count, size, case)


def test_two_add_up(trio: tuple[Any, Any, Any]) -> None:
    from diffusers import MultiAdapter, StableDiffusionAdapterPipeline

    model, pipe, adapter = trio
    images = [picture(1, SIZES[1], seed=seed) for seed in (1, 2)]
    both = StableDiffusionAdapterPipeline(
        **pipe.components | {"adapter": MultiAdapter([pipe.adapter, pipe.adapter])},
        requires_safety_checker=False,
    )
    both.set_progress_bar_config(disable=True)
    patches = (T2IAdapter(adapter, images[0], 0.7), T2IAdapter(adapter, images[1], 0.4))
    case = Case(patches=patches, ask={"image": images, "adapter_conditioning_scale": [0.7, 0.4]})
    agree(model, both, 4.0, 1, SIZES[1], case)


def test_behaves(trio: tuple[Any, Any, Any]) -> None:
    model, _, adapter = trio
    behaves(model, lambda scale: T2IAdapter(adapter, picture(1, (64, 64)), scale))


def test_a_part_of_the_run(trio: tuple[Any, Any, Any]) -> None:
    """Of two steps at the path times 0.502 and 0.002."""
    model, _, adapter = trio
    image = picture(1, (64, 64))

    def run(*window: float) -> torch.Tensor:
        return latents(model, T2IAdapter(adapter, image, 1.0, *window))

    assert torch.equal(run(0.4, 1.0), run(0.0, 1.0))
    assert torch.equal(run(0.0, 0.4), latents(model))
    assert not torch.equal(run(0.6, 1.0), run(0.0, 0.6))


@torch.no_grad()
def test_beside_a_controlnet(trio: tuple[Any, Any, Any], tmp_path: Path) -> None:
    """Each adds in its own place, in whichever order they are given."""
    from diffusers import ControlNetModel

    model, pipe, adapter = trio
    folder = saved(
        ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 8)), tmp_path / "c"
    )
    control, image = open_control(folder), picture(1, (64, 64))
    patches = ControlNet(control, image), T2IAdapter(adapter, image)
    x, text, net = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 24), model.denoise.net
    down, mid = control(x, 500, text, image, return_dict=False)
    wanted = net(
        x, 500, text, down_block_additional_residuals=down, mid_block_additional_residual=mid,
        down_intrablock_additional_residuals=adapter(image), return_dict=False,
    )[0]  # fmt: skip
    for outer, inner in (patches, patches[::-1]):
        with outer(net), inner(net):
            torch.testing.assert_close(net(x, 500, text, return_dict=False)[0], wanted)


def test_one_for_sdxl(tmp_path: Path) -> None:
    """Its first features have half the latents' size, its last ones belong to the middle block."""
    from diffusers import StableDiffusionAdapterPipeline
    from diffusers import T2IAdapter as Adapter

    unet = {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    model, plain = opened(tiny_models.stable_diffusion(tmp_path / "sd", unet=unet))
    config = {"channels": [16, 32, 32, 32], "downscale_factor": 16, "adapter_type": "full_adapter_xl"}
    folder = adapter_folder(tmp_path / "xl", **config)
    components = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    pipe = StableDiffusionAdapterPipeline(
        **components, adapter=Adapter.from_pretrained(folder), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    image, adapter = picture(1, (128, 64)), open_t2i_adapter(folder)
    agree(model, pipe, 4.0, 1, (128, 64), Case(patches=(T2IAdapter(adapter, image),), ask={"image": image}))


def test_what_does_not_fit(trio: tuple[Any, Any, Any], home: Path, tmp_path: Path) -> None:
    model, _, adapter = trio
    image = picture(1, (64, 64))
    wide, grey = (
        open_t2i_adapter(adapter_folder(tmp_path / name, **changes))
        for name, changes in (("wide", {"channels": [16, 24]}), ("grey", {"in_channels": 1}))
    )
    for patch, words in (
        (T2IAdapter(wide, image), r"channels \(16, 24\) and the model's UNet \(16, 32\)"),
        (T2IAdapter(grey, image), "has 3 channels, the adapter reads 1"),
        (T2IAdapter(adapter, picture(1, (60, 64))), "multiples of 8"),
        (T2IAdapter(adapter, picture(1, (96, 64))), "96x64, the result 64x64"),
        (T2IAdapter(model.codec.vae, image), "no T2IAdapter"),
    ):
        with pytest.raises(BadInput, match=words):
            latents(model, patch)
    assert latents(model, T2IAdapter(grey, picture(1, (64, 64), channels=1))).isfinite().all()
    with pytest.raises(BadWeights, match="T2IAdapter is needed"):
        open_t2i_adapter(home / "sd" / "unet")
