"""The request of an opened model settled so that it fits into memory, and the model made to be what it names."""

from __future__ import annotations

from typing import TypeVar

from ..pipelines.protocols import Model
from .converting import converted, converts_of
from .planning import Estimate, planned
from .requests import SamplingRequest
from .shelf import Shelf
from .weighing import Weights, weighed

R = TypeVar("R", bound=SamplingRequest)


def fitted(
    request: R,
    model: Model,
    weights: Weights,
    shelf: Shelf,
    *,
    lightened: tuple[str, ...] = (),
    timed: bool = False,
) -> tuple[R, Estimate | None, Weights]:
    """As `planned`, with the weights that the model has then. A network that the plan takes in 8 bits is converted."""
    full, found = planned(request, model, weights, timed=timed, lightened=lightened)
    new = [technique for technique in converts_of(full) if technique not in request.techniques]
    if found is None or not new:
        return full, found, weights
    shelf.clear()  # under its name there the model is another
    converted(model, new)
    weights = weighed(model, weights)
    return *planned(full, model, weights, timed=timed, lightened=found.changes), weights
