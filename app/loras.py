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
        if self.hashes:
            self.loras.weigh({lora.name: lora.weight for lora in chosen[0]})
        yield

    def record(self, words: Words) -> dict[str, Any]:
        """For one image's record: what acted on it."""
        loras = [
            {"name": lora.name, "weight": lora.weight, "hash": self.hashes[lora.name]} for lora in words.loras
        ]
        found: dict[str, Any] = {"loras": loras}
        return found | ({"embeddings": dict(self.words)} if self.words else {})


def put_on(request: SamplingRequest, model: Model, words: Iterable[Words]) -> Adapters:
    """All LoRAs that some image needs, at rest, and the learned words.

    Where batches can hold images under different ones, they lie in a store, unless one is a DoRA.
    """
    loras, hashes, notes = Loras(model), {}, []
    different = dict.fromkeys(one.loras for one in words)
    files = {name: lora_file(name, request) for name in dict.fromkeys(x.name for y in different for x in y)}
    several = request.batch > 1 and len(different) > 1
    store = LoraStore(model) if several and not any(map(has_magnitudes, files.values())) else None
    for name, path in files.items():
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
    return Adapters(loras, hashes, learned, tuple(notes), store)


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
