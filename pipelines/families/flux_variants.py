"""flux-variants: FLUX.1 Fill, Canny, Depth and Kontext: FLUX.1 dev with a picture to repaint, to follow or to edit.

A FluxFillPipeline, FluxControlPipeline or FluxKontextPipeline folder. Fill needs `image` and `mask`, the control
models `control`, all of the result's size; Kontext takes an `image` of any size in whole tokens (16 px), best one of
about a megapixel. The mean of the VAE's posterior is used, where diffusers draws from it for Fill and control.
Licence of the published weights: FLUX.1 [dev] Non-Commercial License.

Embeds: those of flux, with `beside` or `context`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as Folder
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadInput
from ..protocols import Model
from ..weights import read_json
from ._common import Codec, Coder, check_multiple
from .flux import Flux

Pictures = Mapping[str, Tensor]


@dataclass(frozen=True)
class FluxVariants:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("FluxFillPipeline", "FluxControlPipeline", "FluxKontextPipeline")

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        name = str(read_json(folder / "model_index.json")["_class_name"])
        kind = _KINDS[name]
        model = Flux((name,), kind.beside, kind.usual).load(folder, dtype, device)
        return replace(
            model,
            family="flux-variants",
            needs=kind.needs,
            accepts=kind.accepts,
            attached=partial(kind.attached, model.codec),
        )


def _repainted(codec: Coder, pictures: Pictures) -> dict[str, Tensor]:
    """The picture's latents, grey where it will be repainted, and the mask with each cell's pixels as channels."""
    image, mask = pictures["image"], (pictures["mask"] >= 0.5).float()
    if image.shape[2:] != mask.shape[2:] or mask.shape[1] != 1:
        raise BadInput(
            "pictures",
            f"mask {list(mask.shape)} does not fit image {list(image.shape)}; give [1,1,H,W] of its size",
        )
    latents = codec.encode(torch.where(mask > 0, 0.5, image))
    cells = F.pixel_unshuffle(mask, codec.factor).to(latents)
    rows = max(len(latents), len(cells))
    return {"beside": torch.cat([part.expand(rows, -1, -1, -1) for part in (latents, cells)], dim=1)}


def _followed(codec: Coder, pictures: Pictures) -> dict[str, Tensor]:
    return {"beside": codec.encode(pictures["control"])}


def _edited(codec: Coder, pictures: Pictures) -> dict[str, Tensor]:
    check_multiple(pictures["image"], 2 * codec.factor)
    return {"context": codec.encode(pictures["image"])}


class _Kind(NamedTuple):
    """`usual` are steps and guidance; Depth is mostly run at 10."""

    attached: Callable[[Coder, Pictures], dict[str, Tensor]]
    beside: Callable[[Codec], int]
    usual: tuple[int, float]
    needs: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()


_KINDS = {
    "FluxFillPipeline": _Kind(
        _repainted, lambda codec: codec.channels + codec.factor**2, (50, 30.0), needs=("image", "mask")
    ),
    "FluxControlPipeline": _Kind(_followed, lambda codec: codec.channels, (50, 30.0), needs=("control",)),
    "FluxKontextPipeline": _Kind(_edited, lambda codec: 0, (28, 2.5), accepts=("image",)),
}
