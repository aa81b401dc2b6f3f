"""One family's path through Sfumato against its diffusers pipeline: same folder, noise, prompt; same result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from sfumato.app.builder import build
from sfumato.app.catalogue import techniques
from sfumato.app.chosen import Technique
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.patches.controlnet import ControlNet
from sfumato.pipelines.patches.flux_controlnet import FluxControlNet
from sfumato.pipelines.patches.ip_adapter import IPAdapter
from sfumato.pipelines.patches.sd3_controlnet import Sd3ControlNet
from sfumato.pipelines.patches.t2i_adapter import T2IAdapter
from sfumato.pipelines.protocols import Guidance, Model, Patch, Sampler, Schedule
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.text_to_image import Images, TextToImage

PROMPT, NEGATIVE = "a red cube on a table", "blurry"
SIZES = ((64, 64), (96, 64))
STEPS = 3


@dataclass(frozen=True)
class Case:
    """How a family's diffusers pipeline is asked, where it differs from most.

    `pack(pipe, latents)` turns our latents into what the pipeline takes as `latents`, `unpack(pipe, out, width,
    height)` turns its final latents into ours, `ask` are further arguments of its call, `negative` says whether it
    takes a negative prompt, and `guide` makes the guidance that it uses.
    """

    sampler: Sampler = field(default_factory=Ddim)
    schedule: Schedule | None = None
    guidance: str = "guidance_scale"
    ask: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    patches: tuple[Patch, ...] = ()
    negative: bool = True
    guide: Callable[[float], Guidance] = Cfg
    pack: Callable[[Any, torch.Tensor], torch.Tensor] = lambda pipe, x: x
    unpack: Callable[[Any, torch.Tensor, int, int], torch.Tensor] = lambda pipe, x, width, height: x


def opened(folder: Path) -> tuple[Model, Any]:
    """The same folder through both doors."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return open_model(folder), pipe


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def agree(model: Model, pipe: Any, scale: float, count: int, size: tuple[int, int], case: Case) -> Images:
    """Assert that latents agree to 1e-4 and pictures to 1/255, and return ours."""
    width, height = size
    ours = TextToImage(
        model,
        sampler=case.sampler,
        schedule=case.schedule,
        guidance=case.guide(scale),
        patches=case.patches,
        pictures=case.pictures,
    )(PROMPT, negative=NEGATIVE, width=width, height=height, steps=STEPS, seed=7, count=count)
    ask = {
        "prompt": [PROMPT] * count,
        **({"negative_prompt": [NEGATIVE] * count} if case.negative else {}),
        case.guidance: scale,
        "width": width,
        "height": height,
        "num_inference_steps": STEPS,
        **case.ask,
    }

    def theirs(output: str) -> Any:
        noise = case.pack(pipe, SeededNoise.batch(7, count, model.latent_shape(width, height))())
        fresh = {name: list(value) if isinstance(value, list) else value for name, value in ask.items()}
        return pipe(**fresh, latents=noise, output_type=output).images  # some write into the lists of prompts

    latents = theirs("latent")
    pixels = torch.from_numpy(theirs("np")).permute(0, 3, 1, 2)
    assert relative(ours.latents, case.unpack(pipe, latents, width, height)) < 1e-4
    assert float((ours.pixels - pixels).abs().max()) <= 1 / 255
    return ours


def hears(model: Model, floor: float = 1e-3, steps: int = 1) -> None:
    """Assert that another prompt gives other latents, without which an agreement says little.

    With leading times, one step is at the least noise, where conditions hardly matter: give a few.
    """
    red, frogs = (
        TextToImage(model, guidance=Cfg(1.0))(prompt, width=64, height=64, steps=steps, seed=7).latents
        for prompt in (PROMPT, "seven green frogs")
    )
    assert relative(frogs, red) > floor


def every_technique(model: Model, task: str = "image") -> None:
    """Assert that each sampler, schedule, guidance, wrap and patch that claims the task runs on the model.

    Those that need tensors of their own to be made are tested elsewhere, but for patches: one made for another kind of
    network must say so. What a technique refuses it must refuse in words, before the first step.
    """
    needed = {
        "sampler": "sampler", "schedule": "schedule", "guidance": "guidance", "wrap": "wraps", "patch": "patches"
    }  # fmt: skip
    pictures = {name: torch.rand(1, 1 if name == "mask" else 3, 64, 64) for name in model.needs}
    latents: dict[str, torch.Tensor] = {}
    for kind, place in needed.items():
        for id, entry in techniques(kind).items():
            if task not in entry.tasks or any(setting.default is ... for setting in entry.settings):
                continue
            technique = build(Technique(id=id))
            chosen = {place: (technique,) if kind in ("wrap", "patch") else technique}
            steps = 4 if id == "custom" else 2  # the steps of its default list
            make = TextToImage(model, **({"guidance": Cfg(2.0), "pictures": pictures} | chosen))
            try:
                latents[id] = make(
                    PROMPT, negative=NEGATIVE, width=64, height=64, steps=steps, seed=7
                ).latents
            except ValueError as refused:
                assert id in str(refused) or entry.name in str(refused), f"{id}: {refused}"
    for id, patch in foreign(model.denoise.net).items():
        make = TextToImage(model, patches=(patch,), pictures=pictures)
        with pytest.raises(
            BadInput, match=f"{id} acts in a .*, and this model has a {type(model.denoise.net).__name__}"
        ):
            make(PROMPT, width=64, height=64, steps=2, seed=7)
    assert len(latents) > 15
    assert all(bool(torch.isfinite(x).all()) for x in latents.values()), latents


def foreign(net: Any) -> dict[str, Patch]:
    """By their ids the patches with an adapter that was made for another kind of network than this one."""
    kinds: dict[type, Callable[[], dict[str, Patch]]] = {
        diffusers.UNet2DConditionModel: _for_unets,
        diffusers.FluxTransformer2DModel: _for_flux,
        diffusers.SD3Transformer2DModel: _for_sd3,
    }
    found: dict[str, Patch] = {}
    for kind, make in kinds.items():
        if not isinstance(net, kind):
            found |= make()
    return found


@cache
def _for_unets() -> dict[str, Patch]:
    image = torch.rand(1, 3, 64, 64)
    shape = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
    }
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D")
    control = diffusers.ControlNetModel(down_block_types=blocks, **shape)
    sketch = diffusers.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=8)
    weights = {"image_proj": {"proj.weight": torch.zeros(96, 12)}, "ip_adapter": {}}
    return {
        "controlnet": ControlNet(control, image),
        "t2i-adapter": T2IAdapter(sketch, image),
        "ip-adapter": IPAdapter(weights),
    }


@cache
def _for_flux() -> dict[str, Patch]:
    shape = {"in_channels": 64, "num_layers": 1, "num_single_layers": 0, "attention_head_dim": 16}
    shape |= {"num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 24}
    control = diffusers.FluxControlNetModel(axes_dims_rope=(4, 6, 6), **shape)
    return {"flux-controlnet": FluxControlNet(control, torch.zeros(1, 16, 8, 8))}


@cache
def _for_sd3() -> dict[str, Patch]:
    shape = {"sample_size": 8, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    shape |= {"joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 56}
    control = diffusers.SD3ControlNetModel(pos_embed_max_size=16, **shape)
    return {"sd3-controlnet": Sd3ControlNet(control, torch.zeros(1, 16, 8, 8))}
