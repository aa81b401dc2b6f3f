"""controlnet: a copy of the UNet's encoder, trained to read a control image (edges, depth, pose), steers the layout.

Paper: arXiv:2302.05543, eq. 2
Shapes: image [1 or B,3,H,W], of the size of the result
Units and ranges: image 0..1; scale 0..10, factor on what the control network adds; start and end 0..1, shares of the
    path's time, start below end; beside changes when the control network is computed, not what
Cost: 1 evaluation of the control network per network evaluation while it acts, and its memory; 1 read of the timestep
    from the device per network evaluation if start or end is set
Neutral: scale = 0
Errors: ValueError for a setting outside its range; BadInput for a control network that does not fit the model's
    UNet, pools globally (shuffle), or has another dtype or device, and for an image of another size or number
Differs: start and end count path time (1000 training steps), where diffusers counts steps of the run; the same on even
    times up to their rounding. Acts on negative conditions too, as diffusers does outside its guess mode. Of a UNet
    with further channels (inpainting) the control network sees the latents. Several add up. `beside` is
    arXiv:2407.02031, section 4.1, within one device; with several threads on a processor it changes the last bits, as
    their number does
Tasks: image
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import BadInput
from ..sites import inputs
from ._beside import Samples, beginning, joined
from ._common import (
    acts,
    check_adapter,
    check_dtype,
    check_image,
    check_net,
    check_same,
    check_settings,
    rows,
    same_size,
    step_time,
)


@dataclass(frozen=True, eq=False)
class ControlNet:
    """Adds a control network's features to the skip connections of a UNet."""

    net: nn.Module
    """A ControlNetModel, as `open_control` gives it."""
    image: Tensor
    """The control image, [1 or B,3,H,W] in 0..1."""
    scale: float = 1.0
    """Factor on what is added, 0..10; 0 is off."""
    start: float = 0.0
    """Share of the path's time after which it acts, 0..1."""
    end: float = 1.0
    """Share of the path's time up to which it acts, 0..1."""
    beside: bool = False
    """Whether it is computed beside the UNet's encoder, by a thread or a CUDA stream of its own."""

    def __post_init__(self) -> None:
        check_settings(self.scale, self.start, self.end)
        check_image(self.image)

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        control: Any = self.net
        _check_fit(control, net)
        if self.scale == 0:
            yield
            return
        image = self.image.to(control.device, control.dtype)
        factor = 2 ** (len(control.config.conditioning_embedding_out_channels) - 1)

        def answer(given: Mapping[str, Any]) -> Samples:
            x = given["sample"][:, : control.config.in_channels]
            down, mid = control(
                x,
                given["timestep"],
                encoder_hidden_states=given["encoder_hidden_states"],
                controlnet_cond=rows(image, len(x)),
                conditioning_scale=self.scale,
                class_labels=given.get("class_labels"),
                added_cond_kwargs=given.get("added_cond_kwargs"),
                return_dict=False,
            )
            return Samples(down, mid)

        def controlled(given: Mapping[str, Any]) -> Mapping[str, Any]:
            if not acts(self.start, self.end, step_time(given["timestep"])):
                return {}
            x = given["sample"]
            check_dtype(control, x)
            same_size(image, (x.shape[2] * factor, x.shape[3] * factor))
            return joined(begin(partial(answer, dict(given))), given)

        with beginning(control.device, beside=self.beside) as begin, inputs(net, controlled):
            yield


def _check_fit(control: Any, net: Any) -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel

    check_adapter(control, ControlNetModel)
    check_net(net, UNet2DConditionModel, "controlnet")
    check_same(
        control, net, ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")
    )
    if control.config.in_channels not in (net.config.in_channels, net.config.out_channels):
        check_same(control, net, ("in_channels",))
    if control.config.global_pool_conditions:
        raise BadInput(
            "net",
            "the control network pools its features (shuffle), which serves positive conditions alone, and a patch "
            "does not see which those are; take another one",
        )
