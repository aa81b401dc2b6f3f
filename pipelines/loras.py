"""LoRAs on an opened model, its text encoders included: live at weights that can change, or merged and undone.

    loras = Loras(model)
    loras.add("ink", Path("ink.safetensors"))
    loras.weigh({"ink": 0.8})

Live adapters cost time in each step and can be weighed anew at once. Merged ones cost nothing, and `unmerge` gives
back the weights bit for bit, for which it keeps a copy of each that was changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from .converts._adapters import Merged, merge, put_on, take_off, undo, weigh
from .converts._lora_files import LoraFile, read_lora
from .errors import BadInput
from .families._common import Checkpoint
from .prompts import MOST_WEIGHT
from .protocols import Model


@dataclass(eq=False)
class Loras:
    """All the LoRAs of one model. They act on the model in place; one of these per model."""

    model: Model
    _files: dict[str, LoraFile] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)
    """Names of ours to names that peft can use."""
    _weights: dict[str, float] = field(default_factory=dict)
    _merged: list[Merged] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def add(self, name: str, file: str | Path) -> LoraFile:
        """Read a file and put it on, without effect until it is weighed. `unused` names what found no place."""
        if name in self._files:
            raise BadInput("loras", f"loras: {name!r} is there already; remove it first")
        self._check_live()
        nets, main = networks(self.model)
        found = read_lora(Path(file).expanduser(), nets, main)
        taken = {int(known.removeprefix("lora")) for known in self._ids.values()}
        own = f"lora{max(taken, default=-1) + 1}"
        with ExitStack() as undoing:
            for part, pairs in found.parts.items():
                undoing.callback(take_off, nets[part], [own])
                put_on(nets[part], own, pairs)
            undoing.pop_all()
        self._files[name], self._ids[name] = found, own
        self.weigh(self._weights)
        return found

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Let these act; all others rest. Weight 0 is off, to the bit."""
        self._check_live()
        own = self._own(weights)
        for part, net in self._changed().items():
            weigh(net, {self._ids[n]: w for n, w in own.items() if part in self._files[n].parts})
        self._weights = dict(own)

    def remove(self, name: str) -> None:
        """Take one off; with the last, the model is what it was before."""
        self._check_live()
        self._own({name: 1.0})
        nets, _ = networks(self.model)
        for part in self._files[name].parts:
            take_off(nets[part], [self._ids[name]])
        del self._files[name], self._ids[name]
        self.weigh({n: w for n, w in self._weights.items() if n != name})

    def merge(self, weights: Mapping[str, float]) -> None:
        """Add these into the weights and drop the adapters: the network is as fast as without."""
        self._check_live()
        own = self._own(weights)
        for part, net in self._changed().items():
            acting = {self._ids[n]: w for n, w in own.items() if part in self._files[n].parts}
            self._merged += merge(net, acting)
        for held in (self._files, self._ids, self._weights):
            held.clear()

    def unmerge(self) -> None:
        """The weights as they were, bit for bit, and no LoRAs."""
        undo(self._merged)
        self._merged.clear()

    def _own(self, weights: Mapping[str, float]) -> Mapping[str, float]:
        for name, weight in weights.items():
            if name not in self._files:
                there = ", ".join(self._files) or "none"
                raise BadInput("loras", f"loras: {name!r} was not added; there are {there}")
            if not math.isfinite(weight) or abs(weight) > MOST_WEIGHT:
                raise BadInput("loras", f"loras: the weight of {name!r} is {weight}; give -100 to 100")
        return weights

    def _check_live(self) -> None:
        if self._merged:
            raise BadInput("loras", "loras: some are merged into the weights; call unmerge() first")

    def _changed(self) -> dict[str, nn.Module]:
        nets, _ = networks(self.model)
        return {part: nets[part] for part in nets if any(part in file.parts for file in self._files.values())}


def networks(model: Model) -> tuple[dict[str, nn.Module], str]:
    """The model's networks by their names in its folder, and the name of the one that denoises."""
    if not isinstance(model, Checkpoint):
        raise BadInput("loras", f"loras: {model.name} is no checkpoint; LoRAs act on opened folders")
    nets = {name: part.net for name, part in model.parts.items()}
    main = next((name for name, net in nets.items() if net is model.denoise.net), None)
    if main is None:
        raise BadInput("loras", f"loras: the network of {model.name} is none of its parts")
    return nets, main
