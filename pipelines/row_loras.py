"""s-lora: many LoRAs on one model, every image of a batch under its own.

Paper: arXiv:2311.03285 (S-LoRA), sections 4 and 5
Use: `<lora:NAME:WEIGHT>` in a choice or wildcard of a prompt whose pictures share a batch (`--count 4 --batch 4`); from
    Python `LoraStore`
Cost: two thin products per LoRA and changed layer, for the rows that it acts on; r (in + out) numbers per layer
Tasks: image, video

    store = LoraStore(model, budget=512 * 2**20)
    store.add("ink", Path("ink.safetensors"))
    store.add("oil", Path("oil.safetensors"))
    with store.rows([{"ink": 1.0}, {"oil": 0.8}, {}]):
        latents = pipe.sample(run)

The model's weights are never changed. A layer that some LoRA changes computes its product once for the whole batch;
then each LoRA adds its two thin products to the rows that it acts on (the paper's gathered, segmented product, here in
torch). The factors lie on the model's device under a budget of bytes; who was not used for longest makes way, and is
read from its file again when a batch names it. A LoRA of rank r costs r (in + out) numbers per layer, not a copy.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .converts._adapters import thin
from .converts._lora_files import LoraFile, Pair, read_lora
from .errors import BadInput
from .loras import networks
from .moment import keys
from .prompts import MOST_WEIGHT
from .protocols import Model
from .weights import read_header

Acting = Mapping[str, float]
"""Names of LoRAs and how strongly they act on one image, -100..100."""
Held = Mapping[str, Mapping[str, Pair]]
"""Part of the model -> module -> factors on its device."""


class Known(NamedTuple):
    """A LoRA that can be asked for, on the device or not."""

    path: Path
    size: int
    """Bytes of its factors."""
    parts: tuple[str, ...]
    """What of the model it changes."""


@dataclass(eq=False)
class LoraStore:
    """LoRAs by name. One of these per model, without others put on it."""

    model: Model
    budget: int = 2**31
    """Bytes that factors may take on the model's device, 1 and up."""
    known: dict[str, Known] = field(default_factory=dict)
    reads: int = 0
    """How often a file was read."""
    _held: OrderedDict[str, Held] = field(default_factory=OrderedDict)
    """On the device, the last used last."""

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise BadInput("budget", f"budget = {self.budget} bytes must be 1 or more")

    @property
    def held(self) -> tuple[str, ...]:
        """Those on the device, the one that makes way first in front."""
        return tuple(self._held)

    @property
    def size(self) -> int:
        """Bytes that are taken on the device."""
        return sum(self.known[name].size for name in self._held)

    @property
    def mixes(self) -> bool:
        """Whether one batch can hold images under different ones: none changes a text encoder."""
        _, main = networks(self.model)
        return all(set(known.parts) <= {main} for known in self.known.values())

    def add(self, name: str, file: str | Path) -> LoraFile:
        """Read a file; it acts on nothing yet. `unused` names what found no place."""
        if name in self.known:
            raise BadInput("loras", f"loras: {name!r} is there already; give another name")
        found, held = self._read(Path(file).expanduser())
        size = sum(_bytes(pair) for pairs in held.values() for pair in pairs.values())
        self.known[name] = Known(found.path, size, tuple(held))
        if size <= self.budget:
            self._take_in(name, held, {name})
        return found

    def remove(self, name: str) -> None:
        self._checked({name: 1.0})
        self._held.pop(name, None)
        del self.known[name]

    @contextmanager
    def rows(self, acting: Sequence[Acting]) -> Iterator[None]:
        """Inside, image i of a batch is computed under acting[i]. Weight 0 is off, to the bit.

        With one entry it holds for all rows, also in the text encoders; with several, text encoders stay without.
        """
        if not acting:
            raise BadInput("loras", "loras: no row is named; give one mapping for each image, {} for none")
        needed = {name for row in acting for name, weight in self._checked(row).items() if weight != 0}
        held = self._fetch(needed)
        nets, main = networks(self.model)
        with ExitStack() as stack:
            for part, net in nets.items():
                if part != main and len(acting) > 1:
                    continue
                batch = _Batch(len(acting))
                stack.callback(net.register_forward_pre_hook(batch.begin, with_kwargs=True).remove)
                for module, shares in _by_module(held, part, acting).items():
                    hook = _added(net.get_submodule(module), shares, batch)
                    stack.callback(net.get_submodule(module).register_forward_hook(hook).remove)
            yield

    def _checked(self, row: Acting) -> Acting:
        for name, weight in row.items():
            if name not in self.known:
                raise BadInput(
                    "loras", f"loras: {name!r} was not added; there are {', '.join(self.known) or 'none'}"
                )
            if not math.isfinite(weight) or abs(weight) > MOST_WEIGHT:
                raise BadInput("loras", f"loras: the weight of {name!r} is {weight}; give -100 to 100")
        return row

    def _fetch(self, needed: set[str]) -> Mapping[str, Held]:
        size = sum(self.known[name].size for name in needed)
        if size > self.budget:
            raise BadInput(
                "loras",
                f"loras: this batch needs {size} bytes of them, the budget is {self.budget}; "
                "take a smaller batch, or a larger budget",
            )
        for name in sorted(needed):
            if name in self._held:
                self._held.move_to_end(name)
            else:
                self._take_in(name, self._read(self.known[name].path)[1], needed)
        return {name: self._held[name] for name in needed}

    def _take_in(self, name: str, held: Held, kept: set[str]) -> None:
        for old in [old for old in self._held if old not in kept]:
            if self.size + self.known[name].size <= self.budget:
                break
            del self._held[old]
        self._held[name] = held

    def _read(self, path: Path) -> tuple[LoraFile, Held]:
        nets, main = networks(self.model)
        found = read_lora(path, nets, main)
        self.reads += 1
        held: dict[str, dict[str, Pair]] = {}
        for part, pairs in found.parts.items():
            like = next(weight for weight in nets[part].parameters() if weight.is_floating_point())
            for module, pair in pairs.items():
                if pair.magnitude is not None:
                    raise BadInput(
                        "loras", f"loras: {path} is a DoRA, which rescales whole layers; use Loras for it"
                    )
                factors = Pair(pair.down.to(like).contiguous(), pair.up.to(like).contiguous())
                held.setdefault(part, {})[module] = factors
        return found, held


Share = tuple[Pair, Mapping[int, float]]
"""Factors, and the images on which they act, each with its weight."""


def _by_module(held: Mapping[str, Held], part: str, acting: Sequence[Acting]) -> dict[str, list[Share]]:
    found: dict[str, list[Share]] = {}
    for name in dict.fromkeys(name for row in acting for name in row if name in held):
        weights = {image: row[name] for image, row in enumerate(acting) if row.get(name, 0.0) != 0}
        for module, pair in held[name].get(part, {}).items():
            found.setdefault(module, []).append((pair, weights))
    return found


@dataclass(eq=False)
class _Batch:
    """The network call at hand: which of its rows belong to which image."""

    images: int
    rows: int = 0

    def begin(self, net: nn.Module, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        x = args[0] if args else given.get("hidden_states", given.get("x", given.get("sample")))
        self.rows = 0 if x is None else len(x)

    def of(self, image: int, rows: int) -> list[int]:
        """Rows of one image in a layer with so many. Conditions share the network's batch, image by image; a layer
        may have several rows for each of the network's (frames, windows), side by side.
        """
        said = self.images * len(keys())  # where nobody says the conditions, any number of them may be there
        if not self.rows or rows % self.rows or self.rows % self.images or said not in (0, self.rows):
            raise BadInput(
                "loras", f"loras: a layer with {rows} rows for {self.images} images can't tell them apart; "
                "give all images the same LoRAs"
            )  # fmt: skip
        each = rows // self.rows
        return [row for row in range(rows) if row // each % self.images == image]


def _added(layer: nn.Module, shares: Sequence[Share], batch: _Batch) -> Callable[..., Tensor]:
    """After the layer: its rows with what the LoRAs add."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = args[0]
        for pair, weights in shares:
            if len(weights) == batch.images and len(set(weights.values())) == 1:
                out = out + thin(layer, x, pair) * next(iter(weights.values()))
                continue
            places = [(row, weight) for image, weight in weights.items() for row in batch.of(image, len(x))]
            index = torch.tensor([row for row, _ in places], device=x.device)
            scale = torch.tensor([weight for _, weight in places], device=x.device, dtype=out.dtype)
            added = thin(layer, x[index], pair) * scale.view(-1, *[1] * (out.ndim - 1))
            out = out.index_add(0, index, added)
        return out

    return hook


def _bytes(pair: Pair) -> int:
    return sum(part.numel() * part.element_size() for part in (pair.down, pair.up))


def has_magnitudes(path: Path) -> bool:
    """Whether a file, or what lies in a folder, is a DoRA, which only `Loras` takes. Told by its header."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    files = [file for file in files if file.suffix == ".safetensors" and file.is_file()]
    return any("magnitude" in name or "dora_scale" in name for file in files for name in read_header(file))
