"""Peak memory and time of a settled request on an opened model: weights by their headers, all else by rehearsal."""

from __future__ import annotations

from ..pipelines.protocols import Cond, Model
from ..pipelines.rehearsal import Need, decoding, sampling
from ..pipelines.tiles import Tiled, working
from .planning import GB, Estimate
from .rates import rates, seconds
from .requests import SamplingRequest
from .room import Room
from .weighing import Weights

FIRST_CALLS = 32_000_000
"""Bytes of code and tables that torch and oneDNN load as they first compute."""
UNKNOWN = 64
"""Copies of its latents that a network is taken to hold where it can't be rehearsed."""
LAYERS = 512
"""Features of each cell of the latents there."""
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
    sample = _sampled(model, conds, request.width, request.height, batch)
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
    if not timed:
        return Estimate(phases, given.held, weights.total, given.most)
    per_second = rates(request.device, request.dtype)
    rounds = -(-request.count // batch)
    took = rounds * request.steps * seconds(sample.work, per_second)
    took += request.count * seconds(decode.work, per_second)
    return Estimate(phases, given.held, weights.total, given.most, took)


def _numbers(model: Model, request: SamplingRequest) -> int:
    count = 1
    for axis in model.latent_shape(request.width or 0, request.height or 0):
        count *= axis
    return count


def _conds(request: SamplingRequest, model: Model) -> list[Cond]:
    """As the run will have them: one, or two where it is guided."""
    pos = model.encode([""], key="pos")
    unguided = "guidance" in pos.embeds or request.guidance == 1
    return [pos] if unguided else [pos, model.encode([""], key="neg")]


def _sampled(model: Model, conds: list[Cond], width: int, height: int, batch: int) -> Need:
    try:
        return sampling(model, conds, width, height, batch)
    except FAULTS:
        count = 1
        for axis in model.latent_shape(width, height)[1:]:
            count *= axis
        return Need(4 * UNKNOWN * LAYERS * count * batch * len(conds), {})


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
