"""superpipeline: weights in the host's memory, brought to the device layer by layer while earlier layers compute.

Paper: arXiv:2410.08791, section 3
Shapes: any network
Units and ranges: budget 0 and up, GB of weights on the device at once
Cost: no extra evaluations; each call moves the weights beyond the budget, beside the computing
Neutral: budget = 0, which moves nothing
Errors: ValueError for a budget below the largest layer, a device that is not here, or a network whose weights another
    convert moves
Differs: layers are cut by their size instead of by hand, as many as fit stay from call to call, and which go is decided
    by when they are used next. On a processor the slower store is a file without a name, read by a thread
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.offload import Rest
from ._placement import check_budget, check_device, device_of, move, scratch_folder


@dataclass(frozen=True)
class Superpipeline:
    slot: ClassVar[str] = "placement"

    budget: float = 0.0
    """GB of weights on the device at once, 0 and up; 0 is all of them."""
    device: str = ""
    """Where to compute; empty is where the network is."""

    def __post_init__(self) -> None:
        check_budget(self.budget)
        check_device(self.device)

    def __call__(self, net: nn.Module) -> nn.Module:
        if self.budget == 0:
            return net
        device = device_of(net, self.device)
        scratch = scratch_folder("") if device.type == "cpu" else None
        return move(net, self.budget, Rest(device, by=type(self).__name__, scratch=scratch))
