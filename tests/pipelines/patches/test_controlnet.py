"""ControlNet against diffusers, in Stable Diffusion and SDXL."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, opened, relative
from patched import behaves, latents, picture, saved, sdxl, traceless
from sfumato.pipelines.adapters import open_control
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches.controlnet import ControlNet
from sfumato.pipelines.patches.deepcache import DeepCache

CELLS = (4, 4, 4, 8)
"""Channels of the control image's own layers."""


def control_folder(pipe: Any, folder: Path) -> Path:
    from diffusers import ControlNetModel

    return saved(ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=CELLS), folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("controlnet")


@pytest.fixture(scope="module")
def trio(home: Path) -> tuple[Any, Any, Any]:
    """Our model, their pipeline, and our control network."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    model, plain = opened(tiny_models.stable_diffusion(home / "sd"))
    folder = control_folder(plain, home / "control")
    pipe = StableDiffusionControlNetPipeline(
        **plain.components, controlnet=ControlNetModel.from_pretrained(folder), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return model, pipe, open_control(folder)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(trio: tuple[Any, Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    model, pipe, control = trio
    image = picture(count, size)
    case = Case(
        patches=(ControlNet(control, image, 0.8),), ask={"image": image, "controlnet_conditioning_scale": 0.8}
    )
    agree(model, pipe, scale, count, size, case)


def test_a_part_of_the_run(trio: tuple[Any, Any, Any]) -> None:
    """Of three steps the second, by path time and by number."""
    model, pipe, control = trio
    image = picture(1, SIZES[0])
    window = {"control_guidance_start": 0.333, "control_guidance_end": 0.667}
    case = Case(patches=(ControlNet(control, image, 1.0, 0.333, 0.667),), ask={"image": image, **window})
    agree(model, pipe, 4.0, 1, SIZES[0], case)


def test_two_add_up(trio: tuple[Any, Any, Any], home: Path) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    model, pipe, control = trio
    images = [picture(1, SIZES[1], seed=seed) for seed in (1, 2)]
    both = StableDiffusionControlNetPipeline(
        **pipe.components | {"controlnet": [pipe.controlnet, pipe.controlnet]}, requires_safety_checker=False
    )
    both.set_progress_bar_config(disable=True)
    case = Case(
        patches=(ControlNet(control, images[0], 0.7), ControlNet(control, images[1], 0.4)),
        ask={"image": images, "controlnet_conditioning_scale": [0.7, 0.4]},
    )
    agree(model, both, 4.0, 1, SIZES[1], case)


def test_behaves(trio: tuple[Any, Any, Any]) -> None:
    model, _, control = trio
    image = picture(1, (64, 64))
    behaves(model, lambda scale: ControlNet(control, image, scale))
    before = latents(model, ControlNet(control, image))
    other = latents(model, ControlNet(control, picture(1, (64, 64), seed=4)))
    assert not torch.allclose(before, other, rtol=1e-2)


@torch.no_grad()
def test_a_network_with_further_channels_shows_its_latents(trio: tuple[Any, Any, Any]) -> None:
    from diffusers import UNet2DConditionModel

    model, _, control = trio
    torch.manual_seed(0)
    net = UNet2DConditionModel.from_config({**model.denoise.net.config, "in_channels": 9}).eval()
    x, text, image = torch.randn(2, 9, 8, 8), torch.randn(2, 77, 24), picture(1, (64, 64))
    down, mid = control(x[:, :4], 500, text, image.repeat(2, 1, 1, 1), return_dict=False)
    wanted = net(
        x,
        500,
        text,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
        return_dict=False,
    )[0]
    with ControlNet(control, image)(net):
        torch.testing.assert_close(net(x, 500, text, return_dict=False)[0], wanted)


def test_bfloat16(home: Path, trio: tuple[Any, Any, Any]) -> None:
    model = open_model(home / "sd", dtype=torch.bfloat16)
    image = picture(1, (64, 64))
    assert (
        latents(model, ControlNet(open_control(home / "control", dtype=torch.bfloat16), image))
        .isfinite()
        .all()
    )
    with pytest.raises(BadInput, match=r"float32 on cpu and the model torch\.bfloat16"):
        latents(model, ControlNet(trio[2], image))


def test_what_does_not_fit(trio: tuple[Any, Any, Any], home: Path) -> None:
    from diffusers import ControlNetModel

    model, _, control = trio
    image = picture(1, (64, 64))
    config = {**control.config}

    def other(**changes: Any) -> ControlNetModel:
        return ControlNetModel.from_config({**config, **changes}).eval()

    for net, words in (
        (other(cross_attention_dim=32), "cross_attention_dim = 32 and the model's network 24"),
        (other(block_out_channels=(8, 16)), r"block_out_channels = \(8, 16\)"),
        (other(in_channels=3), "in_channels = 3"),
        (other(global_pool_conditions=True), "shuffle"),
        (model.codec.vae, "no ControlNetModel"),
    ):
        for scale in (0.0, 1.0):
            with pytest.raises(BadInput, match=words):
                latents(model, ControlNet(net, image, scale))
    for wrong, words in (
        (picture(1, (96, 64)), "96x64, the result 64x64"),
        (picture(3, (64, 64)), "3 control"),
    ):
        with pytest.raises(BadInput, match=words):
            latents(model, ControlNet(control, wrong))
    for settings in ({"scale": -1.0}, {"start": 0.5, "end": 0.5}, {"end": 1.5}, {"image": image * 2}):
        with pytest.raises(ValueError):
            ControlNet(**{"net": control, "image": image, **settings})
    flux = open_model(tiny_models.flux(home / "flux"))
    with pytest.raises(BadInput, match="this model has a FluxTransformer2DModel"):
        latents(flux, ControlNet(control, image))


def test_what_does_not_open(trio: tuple[Any, Any, Any], home: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config\.json"):
        open_control(tmp_path)
    with pytest.raises(BadWeights, match="of a 'UNet2DConditionModel'; ControlNetModel or"):
        open_control(home / "sd" / "unet")
    config = json.loads((home / "control" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(BadWeights, match="can run code"):
        open_control(tmp_path)
    weights = (home / "control" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text(json.dumps({**config, "block_out_channels": [1024, 2048]}))
    with pytest.raises(BadWeights, match="download both again"):
        open_control(tmp_path)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline

    home = tmp_path_factory.mktemp("xl")
    model, plain = opened(sdxl(home / "sdxl"))
    folder = control_folder(plain, home / "control")
    pipe = StableDiffusionXLControlNetPipeline(
        **plain.components, controlnet=ControlNetModel.from_pretrained(folder), add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return model, pipe, open_control(folder)


@pytest.mark.parametrize(
    ("scale", "count", "size"), [(1.0, 2, SIZES[1]), (4.0, 1, SIZES[1]), (4.0, 2, SIZES[0])]
)
def test_sdxl_is_diffusers(xl: tuple[Any, Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    model, pipe, control = xl
    image = picture(count, size)
    agree(model, pipe, scale, count, size, Case(patches=(ControlNet(control, image),), ask={"image": image}))


def test_sdxl_behaves(xl: tuple[Any, Any, Any]) -> None:
    model, _, control = xl
    behaves(model, lambda scale: ControlNet(control, picture(1, (64, 64)), scale))


def test_one_for_another_model_is_refused(xl: tuple[Any, Any, Any], trio: tuple[Any, Any, Any]) -> None:
    with pytest.raises(BadInput, match="cross_attention_dim = 24"):
        latents(xl[0], ControlNet(trio[2], picture(1, (64, 64))))


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
        assert torch.get_num_threads() == number, "as many as before"
    finally:
        torch.set_num_threads(before)


def test_beside_the_encoder_to_the_bit(trio: tuple[Any, Any, Any]) -> None:
    """One, two that add up, one of each kind, and in a part of the run."""
    model, _, control = trio
    a, b = picture(1, (64, 64)), picture(1, (64, 64), seed=4)
    with threads(1):
        for chosen in ([(a, 0.8)], [(a, 0.7), (b, 0.4)]):
            wanted = latents(model, *(ControlNet(control, image, scale) for image, scale in chosen))
            for kinds in itertools.product([True, False], repeat=len(chosen)):
                patches = [
                    ControlNet(control, image, scale, beside=beside)
                    for (image, scale), beside in zip(chosen, kinds, strict=True)
                ]
                assert torch.equal(latents(model, *patches), wanted), kinds
        parts = [ControlNet(control, a, 1.0, 0.0, 0.5, beside=beside) for beside in (True, False)]
        assert torch.equal(latents(model, parts[0]), latents(model, parts[1]))


def test_beside_with_several_threads(trio: tuple[Any, Any, Any]) -> None:
    """Half of them each: sums in another order, and always in the same."""
    model, _, control = trio
    a = picture(1, (64, 64))
    with threads(2):
        wanted, found, again = (
            latents(model, ControlNet(control, a, beside=beside)) for beside in (False, True, True)
        )
    assert relative(found, wanted) < 1e-5
    assert torch.equal(found, again)


def test_beside_behaves(trio: tuple[Any, Any, Any], xl: tuple[Any, Any, Any]) -> None:
    for model, _, control in (trio, xl):
        behaves(
            model,
            lambda scale, control=control: ControlNet(control, picture(1, (64, 64)), scale, beside=True),
        )
    assert not [thread for thread in threading.enumerate() if "control-network" in thread.name]


@torch.no_grad()
def test_it_is_waited_for_after_the_encoder(trio: tuple[Any, Any, Any]) -> None:
    """The encoder is done before the control network, which waits for it here, is."""
    model, _, control = trio
    net: Any = model.denoise.net
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 24)
    encoded, order = threading.Event(), []

    def told(name: str) -> Any:
        def hook(*_: Any) -> None:
            order.append(name)
            if name == "encoder":
                encoded.set()

        return hook

    handles = [
        control.register_forward_pre_hook(
            lambda *_: order.append("waits") or None if encoded.wait(30) else None
        ),
        net.down_blocks[-1].register_forward_hook(told("encoder")),
        control.register_forward_hook(told("control")),
        net.mid_block.register_forward_pre_hook(told("middle")),
    ]
    try:
        with ControlNet(control, picture(1, (64, 64)), beside=True)(net):
            net(x, 500, text)
    finally:
        for handle in handles:
            handle.remove()
    assert order == ["encoder", "waits", "control", "middle"]


def test_beside_with_what_goes_wrong(trio: tuple[Any, Any, Any]) -> None:
    """What the control network raises comes out of the run, and leaves nothing."""
    model, _, control = trio

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = control.register_forward_pre_hook(fail)
    try:
        with traceless(model.denoise.net), pytest.raises(ZeroDivisionError):
            latents(model, ControlNet(control, picture(1, (64, 64)), beside=True))
    finally:
        handle.remove()
    cached = (DeepCache(interval=2), ControlNet(control, picture(1, (64, 64)), beside=True))
    plain = (DeepCache(interval=2), ControlNet(control, picture(1, (64, 64))))
    assert torch.equal(latents(model, *cached), latents(model, *plain))
