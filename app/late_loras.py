"""LoRAs that join a run at a later step (`--technique swiftdiffusion`): nothing is put on the model beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..pipelines.patches._incoming import Arrived
from ..pipelines.patches.swiftdiffusion import SwiftDiffusion
from ..pipelines.protocols import Model
from ..pipelines.weights import tensor_hash
from .builder import build, find
from .chosen import LoraChoice, Technique
from .faults import refuse
from .requests import SamplingRequest
from .shelf import stamp

ID = "swiftdiffusion"


@dataclass(eq=False)
class LateLoras:
    """The files of a run, and what became of them in its last batch."""

    model: Model
    patch: SwiftDiffusion
    files: Mapping[str, Path]
    joined: int | None = None
    """The step before which they joined, 0-based; None as long as they have not."""
    notes: tuple[str, ...] = ()
    _hashes: dict[str, Future[str]] = field(default_factory=dict)
    """Over tensors. They are taken by a thread, once the files have been read."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "lora-hashes"))

    @property
    def whenever(self) -> bool:
        """Whether the step is left to chance."""
        return self.patch.at is None

    @contextmanager
    def acting(self, chosen: Sequence[LoraChoice]) -> Iterator[None]:
        """Inside, one batch is sampled; its LoRAs begin to load."""
        self.joined, names = None, [lora.name for lora in chosen if lora.weight != 0]

        def on_join(step: int, arrived: Arrived) -> None:
            self.joined = step
            self.notes = tuple(_note(name, unused) for name, (_, _, _, unused) in
                               zip(names, arrived.files, strict=True) if unused)  # fmt: skip
            for name in names:
                self.hash(name, start=True)

        loras = tuple((str(self.files[lora.name]), lora.weight) for lora in chosen)
        with replace(self.patch, loras=loras, on_join=on_join)(self.model.denoise.net):
            yield

    def hash(self, name: str, *, start: bool = False) -> str:
        """Of the tensors of one of them; with `start` it is only begun."""
        if name not in self._hashes:
            self._hashes[name] = self._pool.submit(tensor_hash, self.files[name])
        return "" if start else self._hashes[name].result()

    def marks(self) -> dict[str, Any]:
        """What tells cheaply, in JSON, that a file is another than it was."""
        return {name: [list(mark) for mark in stamp(path)] for name, path in self.files.items()}

    def settled(self, request: SamplingRequest) -> SamplingRequest:
        """The request that makes the last batch again: with the step at which they did join."""
        if not self.whenever or self.joined is None:
            return request
        again = tuple(
            Technique(id=ID, settings={"at": self.joined}) if technique.id == ID else technique
            for technique in request.techniques
        )
        return request.model_copy(update={"techniques": again})


def late(request: SamplingRequest) -> SwiftDiffusion | None:
    """The technique, if the request names it. Files are given as --lora, whose paths are checked."""
    for technique in request.techniques:
        if find(technique, None, "techniques").id == ID:
            if set(technique.settings) - {"at"}:
                raise refuse(
                    "techniques", str(technique), "takes its LoRAs from --lora; only `at` is set here"
                )
            found: SwiftDiffusion = build(technique)
            return found
    return None


def _note(name: str, unused: Sequence[str]) -> str:
    return (
        f"loras: {name}: {len(unused)} of its modules are left out by swiftdiffusion, which changes the denoising "
        f"network alone, as {unused[0]}"
    )
