"""The door to checkpoints of every kind: what `pipelines/loading` opens, and the families of clips."""

from __future__ import annotations

from pathlib import Path

import torch

from ..pipelines import loading
from ..pipelines.errors import BadInput
from ..pipelines.loading import Family
from ..pipelines.protocols import Model
from .families._clips import ClipCheckpoint
from .protocols import ClipModel


def open_model(
    reference: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    parts: str | Path | None = None,
) -> Model:
    """Open what `pipelines.loading.open_model` opens, of images or of clips."""
    return loading.open_model(reference, dtype=dtype, device=device, parts=parts, among=families())


def open_clip_model(
    reference: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    parts: str | Path | None = None,
) -> ClipModel:
    """Open a model of clips, and refuse any other."""
    model = open_model(reference, dtype=dtype, device=device, parts=parts)
    if not isinstance(model, ClipCheckpoint):
        raise BadInput("model", f"{reference} ({model.family}) makes pictures; give a model of clips")
    return model


def families() -> list[Family]:
    """Those of images, then those of clips."""
    return [*loading.families(), *loading.families(f"{__package__}.families")]
