"""The dial `optimize`: from a level to the techniques that stand for it on a device, and what was left out and why."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from ..kernels.native.around import available as native
from ..kernels.quant.int8 import available as int8
from ..pipelines.errors import BadInput
from ..pipelines.protocols import Model
from . import reuse
from .assembly import on_device, open_for
from .builder import slot_of
from .chosen import Technique
from .converting import FLOAT_ONLY, names_loras
from .requests import SamplingRequest
from .shelf import Shelf
from .weighing import Weights

R = TypeVar("R", bound=SamplingRequest)

LEVELS: dict[str, tuple[str, ...]] = {
    "exact": ("winograd",),
    "balanced": ("int8", "winograd", "int8-attention"),
    "fast": ("int8", "winograd", "int8-attention"),
    "small": ("weight-only",),
}
"""On a processor, in float32."""
ALLOWED = 0.05
"""What `fast` may lose by reuse, as a share of the picture."""


class Opened(NamedTuple, Generic[R]):
    """A model with its converts done, the request with its level spelled out, and what the user should know."""

    model: Model
    request: R
    notes: tuple[str, ...]
    weights: Weights
    lightened: tuple[str, ...]
    """What was planned down before it was opened."""


def opened(request: R, shelf: Shelf, device: str = "auto") -> Opened[R]:
    """`device` is what `auto` means."""
    level, (request, notes) = request.optimize, settled(on_device(request, device))
    model, request, weights, lightened = open_for(request, shelf)
    if level == "fast":
        request, more = reused(request, model.defaults.steps)
        notes = (*notes, *more)
    return Opened(model, request, notes, weights, lightened)


def settled(request: R) -> tuple[R, tuple[str, ...]]:
    """The level as techniques, by which the picture can be made again; and what the user should know.

    Device and dtype must be settled. Techniques that the user chose stay; ours make way for them.
    """
    level = request.optimize
    if level == "off":
        return request, ()
    notes: list[str] = []
    chosen = list(request.techniques)
    names = LEVELS[level]
    if request.device != "cpu" or request.dtype != "float32":
        notes.append(
            f"optimize: {level} has nothing for {request.dtype} on {request.device} yet; "
            "it is for float32 on a processor"
        )
        names = ()
    taken = {slot for technique in chosen if (slot := slot_of(technique)) is not None}
    for name in names:
        technique = Technique(id=name)
        why = _lacking(name, request)
        if why is None and slot_of(technique) in taken:
            why = f"another technique has its place, {slot_of(technique)}"
        if why is None:
            chosen.append(technique)
        else:
            notes.append(f"optimize: {name} is left out: {why}")
        if why is None and name == "winograd" and native() is not None:
            notes.append(f"optimize: winograd runs in plain torch: {native()}")
    return request.model_copy(update={"techniques": tuple(chosen), "optimize": "off"}), tuple(notes)


def reused(request: R, steps: int) -> tuple[R, tuple[str, ...]]:
    """With what `fast` may lose by reuse, if it was measured for these steps; `steps` is the model's own number."""
    if request.reuse or "block cache" in {slot_of(technique) for technique in request.techniques}:
        return request, ()
    try:
        reuse.chosen(ALLOWED, request.model, request.steps or steps)
    except BadInput as error:
        return request, (f"optimize: nothing is reused across steps: {error}",)
    return request.model_copy(update={"reuse": ALLOWED}), ()


def _lacking(name: str, request: SamplingRequest) -> str | None:
    if name in FLOAT_ONLY and names_loras(request):
        return "LoRAs act on the weights that it changes"
    if name == "int8":
        return int8()
    return native() if name == "int8-attention" else None
