"""flux-controlnet: a control network for FLUX.1, a short copy of its transformer that reads a control image's latents.

Paper: arXiv:2302.05543, eq. 2, for the blocks of a transformer, as InstantX and Shakker Labs train it
Shapes: latents [1 or B,16,h,w], of the result's latent size
Units and ranges: latents as `control_latents` makes them; scale 0..10, factor on what is added; start and end 0..1,
    shares of the path's time, start below end; mode 0 and up, the kind of control image that a union network is shown
Cost: 1 evaluation of the control network per network evaluation while it acts, and its memory; 1 read of the time from
    the device per network evaluation if start or end is set, and 1 of the size per run
Neutral: scale = 0
Errors: ValueError for a setting outside its range; BadInput for a control network that does not fit the model's
    transformer, takes pixels (XLabs), or has another dtype or device, for latents of another size or number, and for a
    mode where none is taken or none where one is
Differs: start and end count path time, which the schedule's shift pushes towards noise, where diffusers counts steps.
    With a true negative condition the control network reads that condition's own prompt; diffusers adds to it what was
    said of the positive one. Several add up, also of different depth
Tasks: image
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..sites import inputs
from ._common import acts, check_adapter, check_dtype, check_net, check_same, check_settings, plus, rows

SHARED = (
    "in_channels",
    "joint_attention_dim",
    "pooled_projection_dim",
    "attention_head_dim",
    "num_attention_heads",
)


@dataclass(frozen=True, eq=False)
class FluxControlNet:
    """Adds a control network's features after the blocks of FLUX's transformer."""

    net: nn.Module
    """A FluxControlNetModel, as `open_control` gives it."""
    latents: Tensor
    """The control image's latents, [1 or B,16,h,w], as `control_latents` gives them."""
    scale: float = 1.0
    """Factor on what is added, 0..10; 0 is off."""
    start: float = 0.0
    """Share of the path's time after which it acts, 0..1."""
    end: float = 1.0
    """Share of the path's time up to which it acts, 0..1."""
    mode: int | None = None
    """What a union network is shown, 0 and up; None for networks of one kind."""

    def __post_init__(self) -> None:
        check_settings(self.scale, self.start, self.end)
        if self.latents.ndim != 4 or any(side % 2 for side in self.latents.shape[2:]):
            raise ValueError(
                f"latents must be [1 or B,C,h,w] with even h and w, got {list(self.latents.shape)}"
            )
        if self.mode is not None and self.mode < 0:
            raise ValueError(f"mode must be 0 or more, got {self.mode}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        control: Any = self.net
        _check_fit(control, net, self.mode)
        if self.scale == 0:
            yield
            return
        tokens = _pack(self.latents.to(control.device, control.dtype))
        mode = None if self.mode is None else torch.tensor([[self.mode]], device=control.device)
        unchecked = [True]  # the sizes stay the same in a run
        depths = {
            "controlnet_block_samples": len(net.get_submodule("transformer_blocks")._modules),
            "controlnet_single_block_samples": len(net.get_submodule("single_transformer_blocks")._modules),
        }

        def controlled(given: Mapping[str, Any]) -> Mapping[str, Any]:
            if not acts(self.start, self.end, given["timestep"]):
                return {}
            x = given["hidden_states"]
            check_dtype(control, x)
            if unchecked:
                _check_size(self.latents, x, given["img_ids"])
                unchecked.clear()
            names = ("encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids")
            found = control(
                hidden_states=x,
                controlnet_cond=rows(tokens, len(x)),
                controlnet_mode=None if mode is None else mode.expand(len(x), 1),
                conditioning_scale=self.scale,
                guidance=given.get("guidance") if control.config.guidance_embeds else None,
                **{name: given[name] for name in names},
                return_dict=False,
            )
            some = {name: samples for name, samples in zip(depths, found, strict=True) if samples}
            return {name: plus(given.get(name), _spread(some[name], depths[name])) for name in some}

        with inputs(net, controlled):
            yield


def _check_fit(control: Any, net: Any, mode: int | None) -> None:
    from diffusers import FluxControlNetModel, FluxTransformer2DModel

    check_adapter(control, FluxControlNetModel)
    check_net(net, FluxTransformer2DModel, "flux-controlnet")
    check_same(control, net, SHARED)
    if control.input_hint_block is not None:
        raise BadInput(
            "net", "the control network takes pixels (XLabs), which is not supported; take another one"
        )
    if control.config.guidance_embeds and not net.config.guidance_embeds:
        raise BadInput(
            "net", "the control network is told a guidance scale, which this model has not (schnell)"
        )
    modes = control.config.num_mode
    if (mode is None) != (modes is None) or (mode or 0) >= (modes or 1):
        taken = "no mode" if modes is None else f"a mode in 0..{modes - 1}"
        raise BadInput("mode", f"mode = {mode}, and the control network takes {taken}")


def _check_size(latents: Tensor, x: Tensor, ids: Tensor) -> None:
    height, width = (int(place) + 1 for place in ids[-1, 1:])
    if latents.shape[2:] != (2 * height, 2 * width) or x.shape[1] != height * width:
        raise BadInput(
            "latents",
            f"the control latents have {list(latents.shape[2:])} cells, the result {[2 * height, 2 * width]}; give the "
            "control image the result's size, and the model no reference picture",
        )


def _pack(x: Tensor) -> Tensor:
    """[B,C,h,w] to tokens [B, h/2 * w/2, 4C], as the family packs its latents."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def _spread(samples: Sequence[Tensor], blocks: int) -> list[Tensor]:
    """One sample for each block of the model: a shorter control network serves several blocks with one of its own."""
    each = math.ceil(blocks / len(samples))
    return [samples[i // each] for i in range(blocks)]
