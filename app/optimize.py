"""The dial `optimize`: from a level to the techniques that stand for it on a device, and what was left out and why."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch

from ..kernels.native.around import available as native
from ..kernels.quant.int8 import available as int8
from ..kernels.triton_here import INSTALLED
from ..pipelines.errors import BadInput, NoSite
from ..pipelines.protocols import Model
from . import reuse
from .assembly import on_device, open_for, open_scale
from .builder import find, slot_of
from .chosen import Technique
from .converting import MOVING, PACKED, names_loras
from .levels import REUSING, Facts, choice
from .requests import SamplingRequest
from .sharing import NO_PATCHES
from .shelf import Shelf
from .weighing import Weights

R = TypeVar("R", bound=SamplingRequest)

ALLOWED = 0.06
"""What `fast` may lose by reuse, as a share of the picture."""
PROJECTIONS = ("ip-adapter", "linfusion")
"""Techniques that look for the single projections of attention layers."""


class Opened(NamedTuple, Generic[R]):
    """A model with its converts done, the request with its level spelled out, and what the user should know."""

    model: Model
    request: R
    notes: tuple[str, ...]
    weights: Weights
    lightened: tuple[str, ...]
    """What was planned down before it was opened."""


def opened(request: R, shelf: Shelf, device: str = "auto", *, cut: bool = False) -> Opened[R]:
    """`device` is what `auto` means. `cut`: tokens are shared out over processes, so levels go without patches."""
    given = on_device(request, device)
    asked, notes = settled(given, cut=cut)
    spare = tuple(technique for technique in asked.techniques if technique not in given.techniques)
    try:
        model, request, weights, lightened, left = open_for(asked, shelf, spare)
    except BadInput as error:
        added = [technique for technique in spare if technique.id == "compile"]
        if not added or not isinstance(error.__cause__, NoSite):
            raise
        notes = (*notes, f"optimize: compile is left out: {error.__cause__}")
        kept = tuple(technique for technique in asked.techniques if technique not in added)
        asked = asked.model_copy(update={"techniques": kept})
        model, request, weights, lightened, left = open_for(asked, shelf, spare)
    idle = [t.id for t in asked.techniques if t not in (*request.techniques, *left)]
    notes = (*notes, *(f"optimize: {name} is left out: {PACKED}" for name in idle))
    if given.optimize == REUSING:
        none = f"optimize: nothing is reused across steps: {NO_PATCHES}"
        request, more = (request, (none,)) if cut else reused(request, model)
        notes = (*notes, *more)
    return Opened(model, request, notes, weights, lightened)


def settled(request: R, *, cut: bool = False) -> tuple[R, tuple[str, ...]]:
    """The level as techniques, by which the picture can be made again; and what the user should know.

    Device and dtype must be settled. Techniques that the user chose stay; ours make way for them.
    """
    if request.optimize == "off":
        return request, ()
    names, told = choice(request.optimize, facts(request))
    notes = [f"optimize: {note}" for note in told]
    chosen = list(request.techniques)
    taken = {slot for technique in chosen if (slot := slot_of(technique)) is not None}
    for technique in (Technique.model_validate(name) for name in names):
        if cut and find(technique, None, "techniques").kind == "patch":
            notes.append(f"optimize: {technique.id} is left out: {NO_PATCHES}")
            continue
        if slot_of(technique) in taken:
            place = f"another technique has its place, {slot_of(technique)}"
            notes.append(f"optimize: {technique.id} is left out: {place}")
            continue
        chosen.append(technique)
    return request.model_copy(update={"techniques": tuple(chosen), "optimize": "off"}), tuple(notes)


def facts(request: SamplingRequest) -> Facts:
    """What the choice of techniques depends on, of a request whose device and dtype are settled."""
    device, used = request.device.partition(":")[0], {t.id for t in request.techniques}
    capability = (0, 0)
    if device == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(request.device)
    return Facts(
        device=device,
        dtype=request.dtype,
        capability=capability,
        triton=None if INSTALLED else "needs the package triton (pip install 'sfumato[gpu]')",
        native=native() if device == "cpu" else None,
        int8=int8() if device == "cpu" else None,
        loras=names_loras(request),
        projections=bool(used & set(PROJECTIONS)),
        offload=bool(request.offload) or MOVING in {slot_of(technique) for technique in request.techniques},
    )


def reused(request: R, model: Model) -> tuple[R, tuple[str, ...]]:
    """With what `fast` may lose by reuse, if it was measured for these steps, on the model or on one like it."""
    if request.reuse or "block cache" in {slot_of(technique) for technique in request.techniques}:
        return request, ()
    name, notes = request.model, tuple[str, ...]()
    if reuse.measured(name) is None and (stand_in := reuse.like(model)) is not None:
        told = f"{reuse.unmeasured(name)}; taken is what loses no more than {ALLOWED:.0%} on {stand_in}"
        name, notes = stand_in, (f"optimize: {told}",)
    try:
        steps = request.steps or model.defaults.steps
        chosen = reuse.chosen(ALLOWED, name, steps, open_scale(request, model))
    except BadInput as error:
        return request, (f"optimize: nothing is reused across steps: {error}",)
    return request.model_copy(update={"techniques": (*request.techniques, *chosen)}), notes
