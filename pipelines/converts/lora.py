"""lora: low-rank changes from a file, merged into a network's weights.

Paper: arXiv:2106.09685, eq. 3; LoHa arXiv:2108.06098, LoKr arXiv:2309.14859, DoRA arXiv:2402.09353.
Shapes: any linear or convolutional layer of the network; factors [r, in] and [out, r].
Units and ranges: weight -100..100, times the alpha / rank of the file.
Cost: none per step; a copy of each changed weight while it is merged. On packed weights two thin products per layer and
    call: the factors join the low-rank branch, and nothing is rounded anew.
Neutral: weight = 0.
Errors: BadWeights for a file that is no LoRA, is damaged, or fits no module of the network.
Differs: alpha is taken module by module. Text encoders in the file are passed over: a Convert sees one network,
    `sfumato.pipelines.loras.Loras` sees the whole model, keeps adapters live, and undoes them.
Tasks: image, video
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ._adapters import join_packed, merge, put_on
from ._lora_files import read_lora


@dataclass(frozen=True)
class Lora:
    file: str
    """A .safetensors file, or a folder that peft or diffusers wrote."""
    weight: float = 1.0
    """How strongly it acts, -100..100."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or abs(self.weight) > 100:
            raise ValueError(f"weight must be in -100..100, got {self.weight}")

    def __call__(self, net: nn.Module) -> nn.Module:
        main = "unet" if "UNet" in type(net).__name__ else "transformer"
        pairs = read_lora(Path(self.file).expanduser(), {main: net}, main).parts[main]
        if self.weight != 0:
            pairs = join_packed(net, pairs, self.weight)
        if self.weight != 0 and pairs:
            put_on(net, "lora", pairs)
            merge(net, {"lora": self.weight})
        return net
