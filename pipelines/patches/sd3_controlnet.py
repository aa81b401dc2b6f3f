"""sd3-controlnet: a control network for Stable Diffusion 3 and 3.5 that reads a control image's latents.

Paper: arXiv:2302.05543, eq. 2, for the blocks of a transformer, as InstantX and Stability AI train it
Shapes: latents [1 or B,16,h,w], of the result's latent size
Units and ranges: latents as `control_latents` makes them; scale 0..10, factor on what is added; start and end 0..1,
    shares of the path's time, start below end
Cost: 1 evaluation of the control network per network evaluation while it acts, and its memory; 1 read of the timestep
    from the device per network evaluation if start or end is set
Neutral: scale = 0
Errors: ValueError for a setting outside its range; BadInput for a control network that does not fit the model's
    transformer, takes a mask beside the image (inpainting), or has another dtype or device, and for latents of another
    size or number
Differs: start and end count path time, which the schedule's shift pushes towards noise, where diffusers counts steps.
    Several add up, also of different depth
Tasks: image
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..sites import inputs, swap
from ._common import (
    TRAIN_STEPS,
    acts,
    check_adapter,
    check_dtype,
    check_net,
    check_same,
    check_settings,
    plus,
    rows,
)

SHARED = ("in_channels", "patch_size", "pooled_projection_dim", "attention_head_dim", "num_attention_heads")


@dataclass(frozen=True, eq=False)
class Sd3ControlNet:
    """Adds a control network's features after the blocks of SD 3's transformer."""

    net: nn.Module
    """A SD3ControlNetModel, as `open_control` gives it."""
    latents: Tensor
    """The control image's latents, [1 or B,16,h,w], as `control_latents` gives them."""
    scale: float = 1.0
    """Factor on what is added, 0..10; 0 is off."""
    start: float = 0.0
    """Share of the path's time after which it acts, 0..1."""
    end: float = 1.0
    """Share of the path's time up to which it acts, 0..1."""

    def __post_init__(self) -> None:
        check_settings(self.scale, self.start, self.end)
        if self.latents.ndim != 4:
            raise ValueError(f"latents must be [1 or B,C,h,w], got {list(self.latents.shape)}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        control: Any = self.net
        _check_fit(control, net)
        if self.scale == 0:
            yield
            return
        latents = self.latents.to(control.device, control.dtype)
        depth = len(net.get_submodule("transformer_blocks")._modules)

        def controlled(given: Mapping[str, Any]) -> Mapping[str, Any]:
            if not acts(self.start, self.end, given["timestep"] / TRAIN_STEPS):
                return {}
            x, pooled = given["hidden_states"], given["pooled_projections"]
            check_dtype(control, x)
            if latents.shape[1:] != x.shape[1:]:
                raise BadInput(
                    "latents",
                    f"the control latents are {list(latents.shape[1:])}, the result's {list(x.shape[1:])}; "
                    "give the control image the result's size",
                )
            text = None if control.config.joint_attention_dim is None else given["encoder_hidden_states"]
            zeros = control.config.force_zeros_for_pooled_projection
            (samples,) = control(
                hidden_states=x,
                controlnet_cond=rows(latents, len(x)),
                conditioning_scale=self.scale,
                encoder_hidden_states=text,
                pooled_projections=torch.zeros_like(pooled) if zeros else pooled,
                timestep=given["timestep"],
                return_dict=False,
            )
            name = "block_controlnet_hidden_states"
            return {name: plus(given.get(name), _spread(samples, depth))}

        # the largest control networks (SD 3.5 Large) are published without a patch embedding and use the model's
        lent = nullcontext() if control.pos_embed is not None else swap(control, "pos_embed", net.pos_embed)
        with lent, inputs(net, controlled):
            yield


def _check_fit(control: Any, net: Any) -> None:
    from diffusers import SD3ControlNetModel, SD3Transformer2DModel

    check_adapter(control, SD3ControlNetModel)
    check_net(net, SD3Transformer2DModel, "sd3-controlnet")
    check_same(control, net, SHARED)
    if control.config.joint_attention_dim is not None:
        check_same(control, net, ("joint_attention_dim",))
    if control.config.extra_conditioning_channels:
        raise BadInput(
            "net", "the control network takes a mask beside the image (inpainting); take another one"
        )


def _spread(samples: Sequence[Tensor], blocks: int) -> list[Tensor]:
    """One sample for each block of the model: a shorter control network serves several blocks with one of its own."""
    return [samples[int(i / (blocks / len(samples)))] for i in range(blocks)]
