"""Peak memory and time of a settled request on an opened model: weights by their headers, all else by rehearsal."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..kernels.mapped import give_back
from ..pipelines.errors import SfumatoError
from ..pipelines.families._common import Checkpoint
from ..pipelines.protocols import Cond, Model, Patch
from ..pipelines.rehearsal import Need, decoding, sampling
from ..pipelines.tiles import Tiled, working
from .builder import build, slot_of
from .converting import converts_of
from .faults import refuse
from .planning import GB, Estimate
from .rates import rates, seconds
from .requests import SamplingRequest
from .room import Room, beside, room, unmapped
from .weighing import Weights, weighed

FIRST_CALLS = 32_000_000
"""Bytes of code and tables that torch and oneDNN load as they first compute."""
UNKNOWN = 64
"""Copies of its latents that a network is taken to hold where it can't be rehearsed."""
LAYERS = 512
"""Features of each cell of the latents there."""
CACHE = "block cache"
"""The slot of patches that remember what blocks gave."""
FAULTS = (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)
"""What a network may raise when it looks for numbers where there are only shapes."""


def estimate(
    request: SamplingRequest, model: Model, weights: Weights, given: Room, *, timed: bool = False
) -> Estimate:
    """`given` is what the process held before the model was opened, and the limit."""
    assert request.width is not None and request.height is not None and request.steps is not None
    batch = min(request.batch, request.count)
    given = Room(given.held + (0 if request.device.startswith("cuda") else FIRST_CALLS), given.most)
    conds = _conds(request, model)
    sample = _sampled(request, model, conds, batch)
    decode = _decoded(request, model)
    held = (
        weights.staying + int(min(request.offload * GB, weights.moving)) if request.offload else weights.total
    )
    decoding_holds = weights.staying if request.offload else weights.total
    picture = 4 * 3 * request.width * request.height
    phases = {
        "encode": given.held + held,
        "sample": given.held + held + sample.peak + 4 * _numbers(model, request) * 4 * batch,
        "decode": given.held + decoding_holds + decode.peak + 2 * picture,
    }
    if request.offload and isinstance(model, Checkpoint) and converts_of(request):
        phases["convert"] = given.held + unmapped(model)  # they go into files after
    if not timed:
        return Estimate(phases, given.held, weights.total, given.most)
    per_second = rates(request.device, request.dtype)
    rounds = -(-request.count // batch)
    took = rounds * request.steps * seconds(sample.work, per_second)
    took += request.count * seconds(decode.work, per_second)
    return Estimate(phases, given.held, weights.total, given.most, took)


def at_once(model: Model, most: int, needed: Callable[[int], int]) -> tuple[int, int]:
    """How many pictures of the model's own size fit into memory together, up to `most`, and the peak in bytes.

    For what learns from whole runs; `needed` are the bytes beside the model's weights for so many. Refused with the
    numbers if not even one fits.
    """
    give_back()
    device = next(model.denoise.net.parameters()).device
    now, own = room(str(device)), model.defaults
    base = beside(model, now.held) + weighed(model, Weights()).total + FIRST_CALLS
    batch = most
    while True:
        need = needed(batch)
        if base + need <= now.most:
            return batch, base + need
        if batch == 1:
            break
        batch = -(-batch // 2)
    remedy = (
        f"is too little: one picture of {own.width}x{own.height} at a time needs {(base + need) / GB:.2f} GB"
    )
    raise refuse("memory", f"{now.most / GB:.2f} GB", f"{remedy}; end other programs or take a smaller model")


def _numbers(model: Model, request: SamplingRequest) -> int:
    return math.prod(model.latent_shape(request.width or 0, request.height or 0))


def _conds(request: SamplingRequest, model: Model) -> list[Cond]:
    """As the run will have them: one, or two where it is guided."""
    pos = model.encode([""], key="pos")
    unguided = "guidance" in pos.embeds or request.guidance == 1
    return [pos] if unguided else [pos, model.encode([""], key="neg")]


def _sampled(request: SamplingRequest, model: Model, conds: list[Cond], batch: int) -> Need:
    size = (request.width or 0, request.height or 0)
    caches = [build(technique) for technique in request.techniques if slot_of(technique) == CACHE]
    return called(model, conds, size, batch, caches, request.steps or 1)


def called(
    model: Model, conds: list[Cond], size: tuple[int, int], batch: int, caches: list[Patch], steps: int
) -> Need:
    """Calls of the network; the peak with what caches remember, the work as if nothing were reused."""
    try:
        plain = sampling(model, conds, *size, batch)
    except FAULTS:
        cells = math.prod(model.latent_shape(*size)[1:])
        return Need(4 * UNKNOWN * LAYERS * cells * batch * len(conds), {})
    if not caches:
        return plain
    try:
        filled = sampling(model, conds, *size, batch, patches=caches, steps=steps).peak
    except (SfumatoError, *FAULTS):
        return plain  # one that the network can't have is refused by the run, which says why
    return Need(max(plain.peak, filled), plain.work)


def _decoded(request: SamplingRequest, model: Model) -> Need:
    """With the autoencoder as the request would have it, whatever it is now."""
    width, height = request.width or 0, request.height or 0
    try:
        with working(model, request.decode) as coder:
            if isinstance(coder, Tiled):
                side = coder.tile * coder.factor
                return _times(decoding(model, min(side, width), min(side, height)), coder, width, height)
            return decoding(model, width, height)
    except FAULTS:
        return Need(8_000 * width * height, {})


def _times(one: Need, coder: Tiled, width: int, height: int) -> Need:
    """Tile after tile, and the picture that they are blended into."""
    tiles = len(coder.spans(width // coder.factor)) * len(coder.spans(height // coder.factor))
    whole = 4 * (3 + 1) * width * height
    return Need(one.peak + whole, {name: tiles * amount for name, amount in one.work.items()})
