"""flash-offload: weights left on the disk, mapped from their files and read ahead of use.

Paper: arXiv:2312.11514, sections 3.1 (windows) and 3.2 (long reads)
Shapes: any network
Units and ranges: budget 0 and up, GB of weights in memory at once
Cost: no extra evaluations; each call reads the weights beyond the budget, beside the computing
Neutral: budget = 0, which leaves all in memory
Errors: ValueError for a budget below the largest layer, or a network whose weights another convert moves
Differs: the paper leaves out neurons that a ReLU will silence; these networks have none, so all weights of a layer are
    read. What the folder does not hold as it is, as packed weights or merged LoRAs, goes into a file without a name
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...kernels.offload import Rest
from ._placement import check_budget, device_of, move, scratch_folder, stored_weights


@dataclass(frozen=True)
class FlashOffload:
    slot: ClassVar[str] = "placement"

    budget: float = 0.0
    """GB of weights in memory at once, 0 and up; 0 is all of them."""
    folder: str = ""
    """The network's own folder of safetensors, as MODEL/unet; empty if no file holds its weights."""
    scratch: str = ""
    """Folder on a fast disk for what the files lack; empty is the system's own for such files."""

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def __call__(self, net: nn.Module) -> nn.Module:
        if self.budget == 0:
            return net
        stored, scratch = stored_weights(self.folder), scratch_folder(self.scratch)
        rest = Rest(device_of(net, ""), stored=stored, by=type(self).__name__, scratch=scratch)
        return move(net, self.budget, rest)
