"""From a request to something that runs: the model opened, what was left open filled in, techniques built."""

from __future__ import annotations

import platform
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch

from ..pipelines.bridges import find_bridge, open_bridge, with_bridge
from ..pipelines.guidance.cfg import Cfg
from ..pipelines.loading import builtin_names, find_model, open_model
from ..pipelines.protocols import Model
from ..pipelines.sizes import check_size
from ..pipelines.text_to_image import TextToImage
from . import reuse
from .builder import build, find
from .chosen import Technique
from .converting import EXCHANGING, busy, check_converts, converted, converts_of
from .devices import check_device
from .faults import refuse
from .late_loras import late
from .pictures import own_size
from .planning import GB, Estimate, before_opening, limit_of
from .registry import locate
from .requests import SamplingRequest, settled
from .room import Room, room
from .shelf import Shelf
from .weighing import Weights, weigh, weighed

R = TypeVar("R", bound=SamplingRequest)


class Opened(NamedTuple, Generic[R]):
    model: Model
    request: R
    """With `offload`, or a network in 8 bits, where the weights alone are too much."""
    weights: Weights
    lightened: tuple[str, ...]
    """What was planned down here."""
    left: tuple[Technique, ...] = ()
    """Of a level, for lack of memory."""


def on_device(request: R, device: str = "auto") -> R:
    """The request with device and dtype settled. `device` is what `auto` means."""
    device = device if request.device == "auto" else request.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    dtype = request.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    return request.model_copy(update={"device": device, "dtype": dtype})


def open_for(request: R, shelf: Shelf, spare: tuple[Technique, ...] = ()) -> Opened[R]:
    """The model on the request's device, with its converts done; without those of `spare` that find nothing to do."""
    check_converts(converts_of(request))
    if request.model == "still-life" and not builtin_names():
        raise refuse(
            "model", "still-life", "is not installed; `sfumato train builtin still-life`, or --model FOLDER"
        )
    place = locate(request.model)
    parts = request.parts or place.parts
    beside = locate(parts, field="parts").place if parts else None
    places = [find_model(place.place)]
    places += [] if beside is None else [find_model(beside, "parts")]
    places += [find_bridge(request.bridge)] if request.bridge else []

    dtype, device = getattr(torch, request.dtype), request.device
    weights, now = weigh(places, request.dtype), room(device)
    request, lightened = before_opening(request, weights, now)
    asked, (request, told) = request, _convertible(request, weights, now, spare)
    left = tuple(technique for technique in asked.techniques if technique not in request.techniques)
    converts = converts_of(request)
    # weights are changed in memory, by converts or a bridge's LoRAs, and offloaded after (`easing.place`)
    held = 0 if converts or request.bridge else int((request.offload or 0.0) * GB)

    def make() -> Model:
        opened: Model = open_model(place.place, dtype=dtype, device=device, parts=beside, offload=held)
        if request.bridge:
            opened = with_bridge(opened, open_bridge(request.bridge, dtype=dtype, device=device))
        return converted(opened, converts)

    key = (place.place, beside, request.bridge, request.dtype, device, held, tuple(str(t) for t in converts))
    model = shelf.take(key, tuple(places), make)
    return Opened(model, busy(request, model, spare), weighed(model, weights), (*lightened, *told), left)


def _convertible(
    request: R, weights: Weights, now: Room, spare: tuple[Technique, ...]
) -> tuple[R, tuple[str, ...]]:
    """A model is converted with all its weights in memory, also if they rest in files later.

    Where that is too much converts of `spare` are left out, which is told; others are refused.
    """
    converts = tuple(technique for technique in converts_of(request) if build(technique).slot in EXCHANGING)
    if not converts or not request.offload:
        return request, ()
    eight = any(technique.id == "int8" for technique in converts)
    whole, limit = now.held + weights.total - (weights.saved if eight else 0), limit_of(request, now)
    if whole <= limit:
        return request, ()
    needs = f"made with all weights in memory, which takes {whole / GB:.2f} GB"
    asked = next((technique for technique in converts if technique not in spare), None)
    if asked is not None:
        raise refuse(
            "techniques", str(asked), f"is {needs}; {limit / GB:.2f} GB may be held: drop it, or allow more"
        )
    kept = tuple(technique for technique in request.techniques if technique not in converts)
    names = " and ".join(technique.id for technique in converts)
    return request.model_copy(update={"techniques": kept}), (f"{names} left out, {needs}",)


def resolve(request: R, model: Model) -> R:
    """Nothing left open but a schedule that is the model's own. The seed is drawn here if none was given.

    The dial `reuse` becomes the techniques that it stands for, by which the picture can be made again.
    """
    own, request = model.defaults, settled(request)
    size = (own.width, own.height)
    if request.width is None and request.height is None:
        size = own_size(request, model)
    steps = own.steps if request.steps is None else request.steps
    techniques = tuple(canonical(t, None, "techniques") for t in request.techniques)
    if request.reuse > 0:
        techniques = (
            *techniques,
            *reuse.chosen(request.reuse, request.model, steps, open_scale(request, model)),
        )
    chosen = {
        "reuse": 0.0,
        "width": size[0] if request.width is None else request.width,
        "height": size[1] if request.height is None else request.height,
        "steps": steps,
        "sampler": canonical(request.sampler or Technique(id=own.sampler), "sampler", "sampler"),
        "schedule": canonical(request.schedule, "schedule", "schedule") if request.schedule else None,
        "techniques": techniques,
    }
    found = settle_scale(request.model_copy(update=chosen), model)
    check_size(found.width or 0, found.height or 0, model.limits)
    return found


def open_scale(request: SamplingRequest, model: Model) -> float | None:
    """The guidance scale, as long as nothing says by which technique the network is guided; None if something does."""
    if any(find(t, None, "techniques").kind == "guidance" for t in request.techniques):
        return None
    scale = guiding_scale(model, request.guidance)
    return None if scale == 1 else scale


def guiding_scale(model: Model, asked: float | None = None) -> float:
    """At which a negative condition is evaluated; 1 where none is."""
    if takes_embedded_guidance(model):
        return 1.0
    return model.defaults.guidance if asked is None else asked


def canonical(technique: Technique, kind: str | None, field: str) -> Technique:
    """The technique under its own id, should it have been named by an alias."""
    return technique.model_copy(update={"id": find(technique, kind, field).id})


def assemble(request: SamplingRequest, model: Model) -> TextToImage:
    """The pipeline of a resolved request."""
    assert request.sampler is not None
    late(request)  # refuses files that are named in the technique
    places: dict[str, list[Any]] = {"guidance": [], "wrap": [], "patch": []}
    for technique in request.techniques:
        entry = find(technique, None, "techniques")
        if entry.kind == "convert":
            continue  # done as the model was opened
        if entry.kind not in places:
            raise refuse("techniques", technique.id, f"is a {entry.kind}; {_elsewhere(entry.kind)}")
        if entry.tasks and request.medium not in entry.tasks:
            raise refuse(
                "techniques", technique.id, f"is for {', '.join(entry.tasks)}, not for {request.medium}"
            )
        places[entry.kind].append(build(technique))
    if len(places["guidance"]) > 1:
        names = ", ".join(t.id for t in request.techniques if find(t, None, "techniques").kind == "guidance")
        raise refuse("techniques", names, "are two guidances; keep one")
    guidance, distilled = places["guidance"][0] if places["guidance"] else None, None
    if takes_embedded_guidance(model):
        distilled = request.guidance
    elif guidance is None:
        guidance = Cfg(float(request.guidance or 0.0))
    return TextToImage(
        model,
        sampler=build(request.sampler, kind="sampler", field="sampler"),
        schedule=build(request.schedule, kind="schedule", field="schedule") if request.schedule else None,
        guidance=guidance,
        patches=tuple(places["patch"]),
        wraps=tuple(places["wrap"]),
        distilled=distilled,
    )


def settle_scale(request: R, model: Model) -> R:
    """One truth about the guidance scale. A guidance technique's own setting wins over --guidance, which wins over the
    technique's default; a distilled network is told --guidance itself, whatever technique guides it besides.
    """
    at = next(
        (i for i, t in enumerate(request.techniques) if find(t, None, "techniques").kind == "guidance"), None
    )
    if at is None or takes_embedded_guidance(model):
        scale = model.defaults.guidance if request.guidance is None else request.guidance
        return request.model_copy(update={"guidance": scale})
    technique = request.techniques[at]
    setting = next((s for s in find(technique, "guidance", "techniques").settings if s.name == "scale"), None)
    if setting is None or not isinstance(setting.default, int | float):
        return request.model_copy(update={"guidance": 1.0})
    if "scale" not in technique.settings:
        scale = setting.default if request.guidance is None else request.guidance
        technique = technique.model_copy(update={"settings": {**technique.settings, "scale": scale}})
    techniques = (*request.techniques[:at], technique, *request.techniques[at + 1 :])
    return request.model_copy(update={"guidance": technique.settings["scale"], "techniques": techniques})


def _elsewhere(kind: str) -> str:
    places = {
        "sampler": "give it as --sampler",
        "schedule": "give it as --schedule",
        "distill": "it is for 3D",
    }
    return places.get(kind, "it can't be used here yet")


def takes_embedded_guidance(model: Model) -> bool:
    """True of distilled networks (FLUX.1 dev) that are told the scale instead of being evaluated twice."""
    if model not in _EMBEDDED:
        _EMBEDDED[model] = "guidance" in model.encode([""], key="probe").embeds
    return _EMBEDDED[model]


_EMBEDDED: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()
"""It takes a text encoder's call to find out, and does not change."""


def machine(request: SamplingRequest) -> dict[str, Any]:
    """What the last bits of a result depend on, beside versions and weights."""
    name = (
        torch.cuda.get_device_name(request.device)
        if request.device.startswith("cuda")
        else platform.machine()
    )
    return {"device": request.device, "name": name, "threads": torch.get_num_threads()}


def plan(request: SamplingRequest, model: Model, found: Estimate) -> dict[str, Any]:
    """What the run will do, and what it will need on this machine."""
    info = model.info()
    return {
        "model": info["name"],
        "family": info["family"],
        "size": f"{request.width}x{request.height}",
        "steps": request.steps,
        "images": request.count,
        "evaluations": (request.steps or 0) * request.count,
        **found.plain(),
        "settings": {t.id: t.settings for t in request.techniques},
    }


def defaults_used(request: SamplingRequest, model: Model) -> dict[str, str]:
    """Names of the sampler and schedule that run, also where the model's own was taken."""
    assert request.sampler is not None
    schedule = request.schedule.id if request.schedule else model.defaults.schedule
    return {"sampler": request.sampler.id, "schedule": schedule}
