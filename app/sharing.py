"""How processes share a picture out: read from `--parallel`, and refused where there is nothing to share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..pipelines.guidance.cfg import Cfg
from ..pipelines.guidance.none import none
from ..pipelines.parallel.group import Shape
from ..pipelines.parallel.ulysses import check_cut
from ..pipelines.text_to_image import TextToImage
from .builder import find
from .faults import refuse
from .late_loras import late
from .requests import SamplingRequest

KEYS = {"cfg": "branches", "ulysses": "sequence"}
NO_PATCHES = "--parallel ulysses leaves no room for other patches"
CONDITIONS = {"ip2p": 3}
"""What a guidance asks for in one call, where it is not 2."""


@dataclass(frozen=True)
class Parallel:
    """How many processes, and how long one waits for another."""

    cfg: int = 1
    ulysses: int = 1
    timeout: float = 600.0
    """Seconds for any one exchange, 1 and up."""

    @classmethod
    def read(cls, text: str) -> Parallel:
        """From `cfg=2,ulysses=2,timeout=60`."""
        found: dict[str, Any] = {}
        for part in text.split(","):
            key, _, value = (piece.strip() for piece in part.partition("="))
            if key not in (*KEYS, "timeout") or key in found or not value.isdecimal() or int(value) < 1:
                raise refuse(
                    "parallel", text, "is not KEY=N[,...]; write cfg=2, ulysses=4 or cfg=2,ulysses=2"
                )
            found[key] = int(value)
        parallel = cls(**found)
        _ = parallel.shape  # which checks the numbers
        return parallel

    @property
    def shape(self) -> Shape:
        return Shape(self.cfg, self.ulysses)

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key in KEYS if (value := asdict(self)[key]) > 1)


def check_asked(parallel: Parallel, request: SamplingRequest) -> None:
    """Before anything is opened: what was asked for that processes can't share."""
    if ":" in request.device:
        raise refuse("device", request.device, "is one device; with --parallel give cuda, cpu or auto")
    patch = late(request)
    if patch is not None and patch.at is None:
        raise refuse(
            "techniques", "swiftdiffusion:at=null", "lets each process choose its own step; give at=3"
        )
    kinds = {t.id: find(t, None, "techniques").kind for t in request.techniques}
    patches = ", ".join(id for id, kind in kinds.items() if kind == "patch")
    if parallel.ulysses > 1 and patches:
        raise refuse("parallel", str(parallel), f"leaves no room for other patches; drop {patches}")
    if parallel.ulysses > 1 and request.reuse > 0:
        remedy = (
            "takes patches, for which --parallel ulysses leaves no room; leave --reuse out, or take cfg=2"
        )
        raise refuse("reuse", request.reuse, remedy)


def check_shared(parallel: Parallel, request: SamplingRequest, pipe: TextToImage) -> None:
    """Of a resolved request and its pipeline: whether there is enough to share."""
    if parallel.cfg > 1:
        most = max((CONDITIONS.get(t.id, 2) for t in request.techniques), default=2)
        if pipe.guidance is None or pipe.guidance == Cfg(1.0) or pipe.guidance is none:
            why = "without guidance there is one condition; use ulysses, or --guidance above 1"
            raise refuse("parallel", str(parallel), f"has nothing to spread: {why}")
        if parallel.cfg > most:
            remedy = f"has only {most} conditions to spread; take cfg={most}, and ulysses for more processes"
            raise refuse("parallel", str(parallel), remedy)
    if parallel.ulysses > 1:
        check_cut(pipe.model.denoise.net)
    if request.device.startswith("cuda"):
        check_gpus(parallel)


def check_gpus(parallel: Parallel) -> None:
    """Each process has one of its own."""
    size, there = parallel.shape.size, torch.cuda.device_count()
    if there < size:
        raise refuse("parallel", str(parallel), f"needs {size} GPUs, there are {there}; ask for fewer")
