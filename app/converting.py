"""The converts of a request, done once as its model is opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import nn

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
    for technique in converts:
        convert = build(technique)
        if isinstance(convert, Compile) and convert.backend == "ahead":
            convert = replace(convert, store=own_store())
        try:
            convert(model.denoise.net)
            if isinstance(convert, Winograd) and isinstance(model, Checkpoint):
                vae = model.codec.vae
                if isinstance(vae, nn.Module):
                    convert(vae)
        except ValueError as error:
            raise BadInput("techniques", f"techniques: {technique}: {error}") from error
    return model
