"""FLUX's control networks against diffusers: of one kind, union, and told a guidance scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, Case, agree, opened
from patched import behaves, latents, picture, saved
from sfumato.pipelines.adapters import control_latents, open_control
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches.flux_controlnet import FluxControlNet
from sfumato.pipelines.text_to_image import TextToImage

SHAPE = {
    "in_channels": 64, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
    "pooled_projection_dim": 24, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"num_layers": 2, "num_single_layers": 1},
    "union": {"num_layers": 1, "num_single_layers": 0, "num_mode": 3, "guidance_embeds": False},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three and two blocks, more than its control networks have."""
    from diffusers import FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("flux")
    tiny_models.flux(folder / "flux", guidance_embeds=True)
    saved(FluxTransformer2DModel(num_layers=3, num_single_layers=2, **SHAPE), folder / "flux" / "transformer")
    return folder


@pytest.fixture(scope="module", params=KINDS)
def quartet(request: Any, home: Path) -> tuple[Any, Any, Any, int | None]:
    """Our model, their pipeline, our control network, and the mode it is asked for."""
    from diffusers import FluxControlNetModel, FluxControlNetPipeline

    model, plain = opened(home / "flux")
    folder = saved(FluxControlNetModel(**{**SHAPE, **KINDS[request.param]}), home / request.param)
    pipe = FluxControlNetPipeline(**plain.components, controlnet=FluxControlNetModel.from_pretrained(folder))
    pipe.set_progress_bar_config(disable=True)
    last = pipe.vae.encoder.conv_out  # its posterior loses its width, and the sample is the mean
    with torch.no_grad():
        last.weight[16:] = 0
        last.bias[16:] = -30
    return model, pipe, open_control(folder), 2 if request.param == "union" else None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
def test_is_diffusers(quartet: tuple[Any, Any, Any, int | None], count: int, size: tuple[int, int]) -> None:
    model, pipe, control, mode = quartet
    image = picture(count, size)
    patch = FluxControlNet(control, control_latents(model, control, image), 0.8, mode=mode)
    case = Case(
        patches=(patch,),
        ask={
            "control_image": image * 2 - 1,
            "controlnet_conditioning_scale": 0.8,
            "control_mode": mode,
            "guidance_scale": 3.5,
            "max_sequence_length": tiny_models.WORDS,
        },
        guidance="true_cfg_scale",
        pack=lambda pipe, x: pipe._pack_latents(x, *x.shape),
        unpack=lambda pipe, x, width, height: pipe._unpack_latents(x, height, width, 8),
    )
    agree(model, pipe, 1.0, count, size, case)


def test_behaves(quartet: tuple[Any, Any, Any, int | None]) -> None:
    model, _, control, mode = quartet
    found = control_latents(model, control, picture(1, (64, 64)))
    behaves(model, lambda scale: FluxControlNet(control, found, scale, mode=mode))


def test_a_part_of_the_run_and_two_at_once(home: Path) -> None:
    """Of two steps at the path times 1 and 0.75. Networks of different depth add up in either order."""
    from diffusers import FluxControlNetModel

    model = open_model(home / "flux")
    nets = [open_control(saved(FluxControlNetModel(**{**SHAPE, **KINDS["plain"], "num_layers": n}), home / str(n)))
            for n in (1, 2)]  # fmt: skip
    found = control_latents(model, nets[0], picture(1, (64, 64)))
    one, two = (FluxControlNet(net, found) for net in nets)
    both = latents(model, one, two)
    torch.testing.assert_close(latents(model, two, one), both)
    assert not torch.allclose(both, latents(model, one), rtol=1e-2)
    early, late = FluxControlNet(nets[0], found, 1.0, 0.0, 0.2), FluxControlNet(nets[0], found, 1.0, 0.2, 1.0)
    assert torch.equal(latents(model, early, late), latents(model, one))
    assert not torch.equal(latents(model, early), latents(model, one))


def test_what_does_not_fit(quartet: tuple[Any, Any, Any, int | None], home: Path) -> None:
    from diffusers import FluxControlNetModel

    model, _, control, mode = quartet
    found = control_latents(model, control, picture(1, (64, 64)))

    def other(**changes: Any) -> Any:
        return FluxControlNetModel(**{**SHAPE, "num_layers": 1, "num_single_layers": 0, **changes}).eval()

    for patch, words in (
        (FluxControlNet(other(pooled_projection_dim=20), found), "pooled_projection_dim = 20"),
        (FluxControlNet(other(conditioning_embedding_channels=16), found), "XLabs"),
        (FluxControlNet(other(), found, mode=0), "takes no mode"),
        (
            FluxControlNet(other(num_mode=2), found),
            r"mode = None, and the control network takes a mode in 0\.\.1",
        ),
        (FluxControlNet(other(num_mode=2), found, mode=2), "mode = 2"),
        (FluxControlNet(model.codec.vae, found), "no FluxControlNetModel"),
        (FluxControlNet(control, found[..., :4], mode=mode), r"have \[8, 4\] cells, the result \[8, 8\]"),
    ):
        with pytest.raises(BadInput, match=words):
            latents(model, patch)
    for settings in ({"latents": found[:, :, 1:]}, {"mode": -1}, {"scale": 11.0}):
        with pytest.raises(ValueError):
            FluxControlNet(**{"net": control, "latents": found, **settings})
    with pytest.raises(BadInput, match=r"have \[12, 8\] cells, the result \[8, 12\]"):  # as many tokens
        tall = FluxControlNet(control, torch.zeros(1, 16, 12, 8), mode=mode)
        TextToImage(model, patches=(tall,))("a red cube", width=96, height=64, steps=1)
    sd = open_model(tiny_models.stable_diffusion(home / "sd"))
    with pytest.raises(BadInput, match="acts in a FluxTransformer2DModel"):
        latents(sd, FluxControlNet(control, found, mode=mode))
    schnell = open_model(tiny_models.flux(home / "schnell"))
    if control.config.guidance_embeds:
        with pytest.raises(BadInput, match="told a guidance scale"):
            latents(schnell, FluxControlNet(control, found))
