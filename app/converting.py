"""The converts of a request, done once as its model is opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from ..kernels.native.around import available as native
from ..kernels.quant.packed import QuantConv2d, QuantLinear
from ..pipelines.converts._ahead import Store
from ..pipelines.converts.compile import Compile
from ..pipelines.converts.winograd import Winograd
from ..pipelines.errors import BadInput
from ..pipelines.families._common import Checkpoint
from ..pipelines.protocols import Model
from .builder import build, find
from .chosen import Technique
from .faults import refuse
from .requests import SamplingRequest
from .words import Words

FLOAT_ONLY = ("int8", "winograd", "products", "w8a8", "fused-qkv")
"""After these a LoRA finds no weights to act on."""
EXCHANGING = ("weights", "convolutions", "products", "projections")
"""Slots of converts that do nothing but exchange plain layers."""
MOVING = "placement"
"""Slot of converts by which weights come and go."""
PACKED = "the layers of this model are packed already"
PLAINER = {
    "int8": "int8 computes by oneDNN, without tiles and fused norms",
    "winograd": "winograd runs in plain torch",
}
"""What is lost where our kernels in C++ can't run."""
_IDLE: WeakKeyDictionary[Model, tuple[str, ...]] = WeakKeyDictionary()
"""Converts that found only packed layers in an opened model."""
R = TypeVar("R", bound=SamplingRequest)


def converts_of(request: SamplingRequest) -> tuple[Technique, ...]:
    return tuple(t for t in request.techniques if find(t, None, "techniques").kind == "convert")


def check_converts(converts: Iterable[Technique]) -> None:
    """Before a model is opened: what can't be meant, and two for one slot."""
    taken: dict[str, str] = {}
    for technique in converts:
        if find(technique, None, "techniques").id == "lora":
            raise refuse("techniques", "lora", "is given as --lora here")
        slot: str = build(technique).slot
        if slot in taken:
            raise refuse(
                "techniques", f"{taken[slot]}, {technique.id}", f"both need the slot {slot!r}; drop one"
            )
        taken[slot] = technique.id


def names_loras(request: SamplingRequest) -> bool:
    return bool(request.loras) or "<lora:" in request.prompt + request.negative


def check_loras(techniques: Iterable[Technique], words: Iterable[Words]) -> None:
    changed = [technique.id for technique in techniques if technique.id in (*FLOAT_ONLY, "compile")]
    if not changed or not any(one.loras for one in words):
        return
    if changed[0] == "compile":
        raise refuse("techniques", "compile", "does not see LoRAs, which come and go; drop it")
    raise refuse(
        "techniques",
        changed[0],
        "changes the weights that LoRAs act on; drop it, or quantise the model (`sfumato models quantize`)",
    )


def own_store() -> Store:
    """Blocks compiled ahead lie in the user's own cache folder, which no request can choose: they are code."""
    import platformdirs

    return Store(Path(platformdirs.user_cache_dir("sfumato", appauthor=False)) / "ahead")


def converted(model: Model, converts: Iterable[Technique]) -> Model:
    """The model, its network changed in place; Winograd's convolutions in the codec too."""
    net, idle = model.denoise.net, list[str]()
    packed = any(isinstance(layer, QuantLinear | QuantConv2d) for layer in net.modules())
    made = [(technique, build(technique)) for technique in converts]
    made.sort(key=lambda one: one[1].slot == MOVING)  # weights that come and go can't be changed any more
    for technique, convert in made:
        if isinstance(convert, Compile) and convert.backend == "ahead":
            convert = replace(convert, store=own_store())
        nets = [net]
        if isinstance(convert, Winograd) and isinstance(model, Checkpoint):
            vae = model.codec.vae
            nets += [vae] if isinstance(vae, nn.Module) else []
        before = _kinds(nets)
        try:
            for one in nets:
                convert(one)
        except ValueError as error:
            raise BadInput("techniques", f"techniques: {technique}: {error}") from error
        if packed and convert.slot in EXCHANGING and _kinds(nets) == before:
            idle.append(str(technique))
    _IDLE[model] = (*_IDLE.get(model, ()), *idle)
    return model


def _kinds(nets: Iterable[nn.Module]) -> list[dict[str, type[nn.Module]]]:
    return [{name: type(layer) for name, layer in net.named_modules()} for net in nets]


def busy(request: R, model: Model, spare: Iterable[Technique] = ()) -> R:
    """The request without those converts of `spare` that found only packed layers in the opened model; refused where
    another did, for the picture would be said to be made with it.
    """
    idle = [technique for technique in converts_of(request) if str(technique) in _IDLE.get(model, ())]
    for technique in idle:
        if technique not in spare:
            raise refuse(
                "techniques", str(technique), f"changes nothing: {PACKED}; drop it, or take the plain model"
            )
    kept = tuple(technique for technique in request.techniques if technique not in idle)
    return request.model_copy(update={"techniques": kept})


def without_kernels(request: SamplingRequest) -> tuple[str, ...]:
    """What converts go without where our kernels in C++ can't run, and why."""
    used = {technique.id for technique in request.techniques}
    lost = [told for name, told in PLAINER.items() if name in used and request.device == "cpu"]
    why = native() if lost else None
    return () if why is None else (f"{'; '.join(lost)}: {why}",)
