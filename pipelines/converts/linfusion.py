"""linfusion: self-attention made linear in the number of pixels, with weights distilled for it.

Paper: arXiv:2409.02097 (LinFusion), eqs. 8-10
Shapes: the layers attn1 beside each attention over the text: UNets of Stable Diffusion, PixArt
Units and ranges: weights is a folder with config.json and diffusion_pytorch_model.safetensors, as its authors publish
Cost: two thin layers per attention; its time and memory grow with L where softmax's grow with L^2
Neutral: none, it exchanges the attention; leave it out
Errors: BadWeights for a folder that does not fit the network; NoSite for a network without such layers
Differs: the distilled weights replace those of the whole layer, as there; without `weights` the layers are made linear
    untrained, which is a start for distillation and no picture
Tasks: image, video
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from ._linear import load, mount, self_attentions


@dataclass(frozen=True)
class LinFusion:
    """Exchanges softmax for a normalised linear attention."""

    slot: ClassVar[str] = "attention"

    weights: Path | None = None
    """Folder of distilled layers; without one they are untrained."""

    def __call__(self, net: nn.Module) -> nn.Module:
        layers = self_attentions(net)
        if self.weights is not None:
            load(net, self.weights)
            return net
        for module in layers.values():
            mount(module)
        return net
