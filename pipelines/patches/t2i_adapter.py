"""t2i-adapter: a small network reads a control image (sketch, edges, depth, colours) once and steers the whole run.

Paper: arXiv:2302.08453, section 3.2
Shapes: image [1 or B,C,H,W], of the size of the result; C as the adapter was trained, mostly 3, 1 for sketches
Units and ranges: image 0..1; scale 0..10, factor on the features; start and end 0..1, shares of the path's time,
    start below end
Cost: 1 evaluation of the adapter per run and its features' memory; no network evaluations; 1 read of the timestep from
    the device per network evaluation if start or end is set
Neutral: scale = 0
Errors: ValueError for a setting outside its range; BadInput for an adapter that does not fit the model's UNet, or has
    another dtype or device, and for an image of another size, number of channels or number of images
Differs: start and end count path time, where diffusers has none for SD and counts steps for SDXL; several add up
Tasks: image
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import BadInput
from ..sites import inputs
from ._common import (
    acts,
    check_adapter,
    check_dtype,
    check_image,
    check_net,
    check_settings,
    no_grad,
    plus,
    rows,
    same_size,
    step_time,
)


@dataclass(frozen=True, eq=False)
class T2IAdapter:
    """Adds an adapter's features to those of a UNet's encoder."""

    net: nn.Module
    """A T2IAdapter of diffusers, as `open_t2i_adapter` gives it."""
    image: Tensor
    """The control image, [1 or B,C,H,W] in 0..1."""
    scale: float = 1.0
    """Factor on what is added, 0..10; 0 is off."""
    start: float = 0.0
    """Share of the path's time after which it acts, 0..1."""
    end: float = 1.0
    """Share of the path's time up to which it acts, 0..1."""

    def __post_init__(self) -> None:
        check_settings(self.scale, self.start, self.end)
        check_image(self.image)

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        adapter: Any = self.net
        _check_fit(adapter, net, self.image)
        if self.scale == 0:
            yield
            return
        features = [feature * self.scale for feature in no_grad(adapter, self.image)]
        pixels = adapter.config.downscale_factor
        if adapter.config.adapter_type == "full_adapter_xl":
            pixels //= 2  # its first features have half the latents' size

        def adapted(given: Mapping[str, Any]) -> Mapping[str, Any]:
            if not acts(self.start, self.end, step_time(given["timestep"])):
                return {}
            x = given["sample"]
            check_dtype(adapter, x)
            same_size(self.image, (x.shape[2] * pixels, x.shape[3] * pixels))
            more = [rows(feature, len(x)) for feature in features]
            name = "down_intrablock_additional_residuals"
            return {name: plus(given.get(name), more)}

        with inputs(net, adapted):
            yield


def _check_fit(adapter: Any, net: Any, image: Tensor) -> None:
    from diffusers import T2IAdapter as Adapter
    from diffusers import UNet2DConditionModel

    check_adapter(adapter, Adapter)
    check_net(net, UNet2DConditionModel, "t2i-adapter")
    own, blocks = tuple(adapter.config.channels), tuple(net.config.block_out_channels)
    if own[: len(blocks)] != blocks:
        raise BadInput(
            "net",
            f"the T2IAdapter has channels {own} and the model's UNet {blocks}; take one made for this model",
        )
    channels, factor = adapter.config.in_channels, adapter.config.downscale_factor
    if image.shape[1] != channels:
        raise BadInput(
            "image",
            f"the control image has {image.shape[1]} channels, the adapter reads {channels}; convert it",
        )
    if any(side % factor for side in image.shape[2:]):
        raise BadInput(
            "image", f"the control image is {list(image.shape[2:])}; both sides must be multiples of {factor}"
        )
