"""What a run will need, and how it is made to fit: predicted before it starts, planned down rung by rung, or refused.

The ladder below is the order in which a run gives up speed for memory. A rung changes fields of the request and nothing
else, so the settled request says the whole plan: it is in every result's metadata, and a replay does the same again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from ..kernels.mapped import give_back
from ..pipelines.protocols import Model
from .chosen import Technique
from .converting import converts_of, names_loras
from .faults import refuse
from .requests import SamplingRequest
from .room import Room, beside, room
from .weighing import Weights, weighed

R = TypeVar("R", bound=SamplingRequest)

GB, KB = 1e9, 1e3
COARSE_PIXEL, COARSE_LATENT = 8_000, 4_000
"""Bytes per pixel of a decoded picture, and of each picture being sampled, that no known model reaches."""
LEAST = 0.05
"""The least share of the weights that is worth holding at once."""
WORTH = 0.1
"""The least share of the weights that is worth another network."""
KERNELS = 64_000_000
"""Bytes that 8 bits must save besides: the code of their kernels and what it first takes are a third of that."""
ALL_PHASES, SAMPLE, DECODE = ("encode", "sample", "decode"), ("sample",), ("decode",)


@dataclass(frozen=True)
class Estimate:
    """Of a settled request."""

    phases: Mapping[str, int]
    """The most bytes at once in each phase."""
    base: int
    """Bytes of the process without the model."""
    weights: int
    """Bytes of all weights, in the type in which they compute."""
    limit: int
    seconds: float | None = None
    """Sampling and decoding on this machine; None where it was not asked for."""
    changes: tuple[str, ...] = field(default=())
    """What was planned down."""

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def tightest(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    def plain(self) -> dict[str, Any]:
        return {
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "weights_bytes": self.weights,
            "base_bytes": self.base,
            "peak_bytes": self.peak,
            "phase_bytes": dict(self.phases),
            "limit_bytes": self.limit,
            "planned_down": list(self.changes),
        }


class Rung(NamedTuple):
    """One way to need less. `down` gives None where it changes nothing any more."""

    told: str
    phases: tuple[str, ...]
    """Those that it makes smaller."""
    down: Callable[[SamplingRequest, Weights, int], dict[str, Any] | None]
    """(request, its weights, bytes above the limit; 0 if unknown) -> changed fields."""


def _in_stripes(request: SamplingRequest, weights: Weights, above: int) -> dict[str, Any] | None:
    return {"decode": "stripes"} if request.decode in ("auto", "whole") else None


def _in_tiles(request: SamplingRequest, weights: Weights, above: int) -> dict[str, Any] | None:
    return {"decode": "tiles"} if request.decode == "stripes" else None


def _offloaded(request: SamplingRequest, weights: Weights, above: int) -> dict[str, Any] | None:
    """So much less held that the rest fits; a quarter if nobody knows how much that is."""
    now = request.offload * GB if request.offload else float(weights.moving)
    least = max(weights.largest, LEAST * weights.moving)
    held = max(least, now - 1.05 * above if above else now / 4)
    told = math.ceil(held / KB) * KB / GB
    most = request.offload or weights.moving / GB
    return {"offload": told} if told < 0.999 * most else None


def _fewer(request: SamplingRequest, weights: Weights, above: int) -> dict[str, Any] | None:
    return {"batch": -(-request.batch // 2)} if min(request.batch, request.count) > 1 else None


def _in_8_bits(request: SamplingRequest, weights: Weights, above: int) -> dict[str, Any] | None:
    """Before a run alone: what has begun is not finished by another network."""
    if not above or request.offload or weights.saved < max(KERNELS, WORTH * weights.total):
        return None
    if _refuses_int8(request):
        return None
    return {"techniques": (*request.techniques, Technique(id="int8"))}


def _refuses_int8(request: SamplingRequest) -> bool:
    from ..kernels.quant.int8 import available

    """Also where the network is another already by the user's choice."""
    if request.device != "cpu" or request.dtype != "float32" or names_loras(request):
        return True
    if request.wildcards is not None:  # a line of theirs may name a LoRA
        return True
    return bool(converts_of(request)) or available() is not None


QUANTISE = Rung("the network's weights are held in 8 bits", ALL_PHASES, _in_8_bits)
OFFLOAD = Rung("weights are held in part and read as they are needed", ALL_PHASES, _offloaded)
LADDER: tuple[Rung, ...] = (
    Rung("pictures are decoded in stripes", DECODE, _in_stripes),
    Rung("fewer pictures at once", SAMPLE, _fewer),
    QUANTISE,
    OFFLOAD,
    Rung("pictures are decoded in tiles", DECODE, _in_tiles),
)
"""From what costs least to what costs most; a further one is a row.

8 bits come before offload: what the eye does not see is changed, and each step is faster, while offload reads the same
weights anew at every step, from the disk where memory is short indeed.
"""


def limit_of(request: SamplingRequest, now: Room) -> int:
    return int(request.memory * GB) if request.memory is not None else now.most


def surely_fits(request: SamplingRequest, weights: Weights, now: Room) -> bool:
    """Whether even a coarse bound is far below what there is, so that nothing need be rehearsed."""
    if request.memory is not None:
        return False
    pixels = (request.width or 0) * (request.height or 0)
    batch = min(request.batch, request.count)
    bound = weights.total + pixels * (COARSE_PIXEL + COARSE_LATENT * batch)
    return now.held + bound < now.most / 2


def before_opening(request: R, weights: Weights, now: Room) -> tuple[R, tuple[str, ...]]:
    """Weights that will not fit are not read into memory in the first place; with what was planned down."""
    told: list[str] = []
    if request.offload is not None:
        return request, ()
    for rung in (QUANTISE, OFFLOAD):
        above = now.held + weights.total - limit_of(request, now)
        helps = rung is OFFLOAD or above <= weights.saved  # converts are done with all weights in memory
        changed = rung.down(request, weights, above) if weights.total and above > 0 and helps else None
        if changed is not None:
            request = request.model_copy(update=changed)
            weights = weights.in_8_bits if rung is QUANTISE else weights
            told.append(rung.told)
    return request, tuple(told)


def planned(
    request: R, model: Model, weights: Weights, *, timed: bool = False, lightened: tuple[str, ...] = ()
) -> tuple[R, Estimate | None]:
    """The request with everything that memory decides settled, and the estimate; None where none was needed.

    `lightened` is what was planned down before. Where the plan takes a network in 8 bits it ends there, to be gone on
    with when the model has one (`fitting.py`). Refused with the numbers if no rung of the ladder makes it fit.
    """
    from .estimates import estimate

    give_back()
    now = room(request.device)
    request = request.model_copy(
        update={
            "decode": "whole" if request.decode == "auto" else request.decode,
            "offload": request.offload or 0.0,
        }
    )
    if not timed and not lightened and surely_fits(request, weights, now):
        return request, None
    told = list(lightened)
    limit, base = limit_of(request, now), beside(model, now.held)
    found = estimate(request, model, weights, Room(base, limit), timed=timed)
    while found.peak > limit and QUANTISE.told not in told[len(lightened) :]:
        above, phase = found.peak - limit, found.tightest
        rung, changed = _next_rung(request, weights, above, phase)
        if rung is None or changed is None:
            raise _impossible(request, found, limit)
        request = request.model_copy(update=changed)
        told.append(rung.told)
        if rung is not QUANTISE:
            found = estimate(request, model, weights, Room(base, limit), timed=timed)
    changes = tuple(dict.fromkeys(told))
    return request, Estimate(found.phases, found.base, found.weights, found.limit, found.seconds, changes)


def _next_rung(
    request: SamplingRequest, weights: Weights, above: int, phase: str
) -> tuple[Rung | None, dict[str, Any] | None]:
    for rung in LADDER:
        if rung is OFFLOAD and phase == "decode" and request.offload:
            continue  # whatever is offloaded has left memory by then
        if rung is QUANTISE and phase == "decode" and above > weights.saved:
            continue  # it is the picture that is large, not the network
        changed = rung.down(request, weights, above) if phase in rung.phases else None
        if changed is not None:
            return rung, changed
    return None, None


def _impossible(request: SamplingRequest, found: Estimate, limit: int) -> Exception:
    size = f"{request.width}x{request.height}"
    remedy = (
        f"is too little: {size} in {request.dtype} needs {found.peak / GB:.2f} GB at least, in the phase "
        f"{found.tightest} ({found.base / GB:.2f} GB of them hold the program itself); ask for a smaller --size"
        " or --dtype bfloat16, or allow more"
    )
    return refuse("memory", f"{limit / GB:.2f} GB", remedy)


def after_failure(request: R, weights: Weights, phase: str) -> tuple[R, str] | None:
    """The request one rung down after memory ran out in a phase, and what to say; None at the foot of the ladder."""
    rung, changed = _next_rung(request, weights, 0, phase)
    if rung is None or changed is None:
        return None
    return request.model_copy(update=changed), rung.told


def plan_told(found: Estimate | None) -> tuple[str, ...]:
    """What was planned down, for people."""
    if found is None or not found.changes:
        return ()
    return (f"planned to fit into {found.limit / GB:.2f} GB: {'; '.join(found.changes)}",)


def plan_notes(request: SamplingRequest, model: Model) -> tuple[str, ...]:
    """What the plan in a settled request means for an opened model, for people."""
    notes = []
    if request.offload:
        held = f"{request.offload:g} GB"
        fit = 0 < weighed(model, Weights()).moving <= request.offload * GB
        notes.append(
            f"memory: all weights fit into the {held} that may be held at once"
            if fit
            else f"memory: {held} of the weights are held at once, the others read as needed"
        )
    if request.memory is not None and any(technique.id == "int8" for technique in request.techniques):
        notes.append("memory: the network computes in 8 bits; a picture in float32 differs a little")
    if request.decode in ("stripes", "tiles"):
        inexact = ", blended; colours may differ a little" if request.decode == "tiles" else ""
        notes.append(f"memory: pictures are decoded in {request.decode}{inexact}")
    return tuple(notes)
