"""A checkpoint: a run between two steps, as a value and as one file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from .noise import SeededNoise
from .protocols import State

FORMAT = "sfumato checkpoint 1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything from which a run goes on exactly: sampler state, place in the times, noise generators."""

    state: State
    step: int
    """Whole steps done."""
    ts: tuple[float, ...]
    noise: Tensor | None = None
    """Generator states, uint8 [images, bytes]."""
    fingerprint: str = ""

    def branch(
        self,
        fingerprint: str,
        *,
        noise: SeededNoise | None = None,
        ts: Sequence[float] | None = None,
        keep_memory: bool = True,
    ) -> Checkpoint:
        """The start of another run from this step: with other conditions, noise, or times from here on.

        `keep_memory=False` drops what a multistep sampler remembers of the old conditions.
        """
        new = tuple(self.ts if ts is None else ts)
        if new[: self.step + 1] != self.ts[: self.step + 1]:
            raise ValueError(f"a branch keeps the times already passed, {self.ts[: self.step + 1]}")
        states = self.noise if noise is None else noise.states()
        state = self.state if keep_memory else State(self.state.x)
        return replace(self, state=state, ts=new, noise=states, fingerprint=fingerprint)

    def state_on(self, device: torch.device) -> State:
        memory = tuple(m.to(device) for m in self.state.memory)
        return State(self.state.x.to(device), memory, self.state.times)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; the old file stays whole until the new one is."""
        tensors = {"x": self.state.x} | {f"memory.{i}": m for i, m in enumerate(self.state.memory)}
        if self.noise is not None:
            tensors["noise"] = self.noise
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        meta = {
            "format": FORMAT,
            "step": str(self.step),
            "ts": json.dumps([t.hex() for t in self.ts]),
            "times": json.dumps([t.hex() for t in self.state.times]),
            "fingerprint": self.fingerprint,
        }
        target = FilePath(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                file.write(save(tensors, metadata=meta))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise ValueError(
                    f"{os.fspath(path)} is not a {FORMAT!r} file (format {meta.get('format')!r})"
                )
            names = set(file.keys())
            count = sum(name.startswith("memory.") for name in names)
            memory = tuple(file.get_tensor(f"memory.{i}") for i in range(count))
            noise = file.get_tensor("noise") if "noise" in names else None
            x = file.get_tensor("x")
        times = tuple(float.fromhex(t) for t in json.loads(meta["times"]))
        ts = tuple(float.fromhex(t) for t in json.loads(meta["ts"]))
        return cls(State(x, memory, times), int(meta["step"]), ts, noise, meta["fingerprint"])
