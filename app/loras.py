"""The LoRAs and learned words of a request: found by path or by name in a folder, put on the model, told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pipelines.learned_words import learn
from ..pipelines.loras import Loras
from ..pipelines.named_files import named_file
from ..pipelines.protocols import Model
from ..pipelines.row_loras import LoraStore, has_magnitudes
from ..pipelines.weights import tensor_hash
from .chosen import LoraChoice
from .faults import refuse
from .late_loras import LateLoras, late
from .registry import remembered_lora
from .requests import SamplingRequest
from .words import Words

SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Adapters:
    """What is on the model beside its own weights."""

    loras: Loras
    hashes: dict[str, str] = field(default_factory=dict)
    """Of each LoRA, over its tensors."""
    words: dict[str, str] = field(default_factory=dict)
    """Learned words and the hashes of their files."""
    notes: tuple[str, ...] = ()
    store: LoraStore | None = None
    """Where images of one batch have LoRAs of their own."""
    late: LateLoras | None = None
    """Where they join during the run."""

    @property
    def told(self) -> tuple[str, ...]:
        """Notes; of late ones, those that are known by now."""
        return self.notes if self.late is None else (*self.notes, *self.late.notes)

    def marks(self) -> list[Any]:
        """What a checkpoint compares, in JSON: that all of it is what it was."""
        return [self.hashes if self.late is None else self.late.marks(), self.words]

    @property
    def whenever(self) -> bool:
        """Whether LoRAs join at a step that chance gives."""
        return self.late is not None and self.late.whenever

    def settled(self, request: SamplingRequest) -> SamplingRequest:
        """The request that makes the last batch again."""
        return request if self.late is None else self.late.settled(request)

    @property
    def mixes(self) -> bool:
        """Whether images of one batch may have different LoRAs."""
        return self.store is not None and self.store.mixes

    @contextmanager
    def acting(self, chosen: Sequence[tuple[LoraChoice, ...]]) -> Iterator[None]:
        """Inside, image i of a batch is made under chosen[i]; without a store all are the same."""
        if self.store is not None:
            rows = [{lora.name: lora.weight for lora in loras} for loras in chosen]
            with self.store.rows(rows if any(row != rows[0] for row in rows) else rows[:1]):
                yield
            return
        if self.late is not None:
            with self.late.acting(chosen[0]):
                yield
            return
        if self.hashes:
            self.loras.weigh({lora.name: lora.weight for lora in chosen[0]})
        yield

    def record(self, words: Words) -> dict[str, Any]:
        """For one image's record: what acted on it."""
        hashed = self.hashes.__getitem__ if self.late is None else self.late.hash
        loras = [
            {"name": lora.name, "weight": lora.weight, "hash": hashed(lora.name)} for lora in words.loras
        ]
        found: dict[str, Any] = {"loras": loras}
        return found | ({"embeddings": dict(self.words)} if self.words else {})


def put_on(request: SamplingRequest, model: Model, words: Iterable[Words]) -> Adapters:
    """All LoRAs that some image needs, at rest, and the learned words.

    Where batches can hold images under different ones, they lie in a store, unless one is a DoRA. Late ones are
    found here, and read when a batch begins.
    """
    loras, hashes, notes = Loras(model), {}, []
    different = dict.fromkeys(one.loras for one in words)
    files = {name: lora_file(name, request) for name in dict.fromkeys(x.name for y in different for x in y)}
    coming = late(request)
    joining = None if coming is None or not files else LateLoras(model, coming, files)
    several = joining is None and request.batch > 1 and len(different) > 1
    store = LoraStore(model) if several and not any(map(has_magnitudes, files.values())) else None
    for name, path in files.items() if joining is None else ():
        found = loras.add(name, path) if store is None else store.add(name, path)
        hashes[name] = tensor_hash(found.path)
        if found.unused:
            notes.append(
                f"loras: {name}: {len(found.unused)} of its modules are not in this model, as {found.unused[0]}"
            )
    learned = {}
    for given in request.embeddings:
        file = Path(given).expanduser()
        word = learn(model, file)
        learned[word] = tensor_hash(file)
    return Adapters(loras, hashes, learned, tuple(notes), store, joining)


def lora_file(name: str, request: SamplingRequest) -> Path:
    """A path that --lora gave, a remembered name, or one in the folder of LoRAs. Prompts give no paths."""
    path = Path(name).expanduser()
    if any(lora.name == name for lora in request.loras):
        if path.exists():
            return path
        if path.is_absolute():
            raise refuse("loras", name, "does not exist; give a .safetensors file")
    remembered = remembered_lora(name)
    if remembered is not None:
        return remembered
    return named_file(Path(request.lora_folder).expanduser(), name, SUFFIX, "loras")
