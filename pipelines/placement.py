"""A model opened so that its networks' weights rest in its files, and come in ahead of use under one budget.

    model = open_model(folder, offload=2_000_000_000)

Text encoders and the denoising network share the budget; the autoencoder stays in memory, and before it is called
everything else makes room for it. Weights that the files hold in another precision are converted layer by layer as they
come in, so that a model of any size opens in little memory.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from ..kernels.mapped import Mapped, Place
from ..kernels.offload import Rest, Stored, offload, offloaded, restore
from ..kernels.residence import Pool
from .converts._compiled import taken_off
from .errors import BadInput
from .families._common import Checkpoint
from .families._packed import blank, fill
from .families._parts import PLACEMENT
from .packed_header import layers_of
from .protocols import Model
from .weights import read_headers

LOG = logging.getLogger(__name__)
STAYS = ("vae", "movq", "vqvae")
"""Folders of autoencoders: small beside what they compute, and laid out anew for speed as they are opened."""

BY = "offload"
"""Who moves weights here, as others are told."""

TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the networks of a model that is being opened go."""

    pool: Pool
    scratch: Path | None = None
    """Folder for weights that no file holds as they are; the system's own for such files if None."""
    blanks: WeakSet[nn.Module] = field(default_factory=WeakSet)
    """Networks that hold their files' types, and are to compute in the run's."""

    def blank(self, home: Path, kind: str, dtype: torch.dtype, files: Sequence[Path]) -> nn.Module | None:
        """The network over its mapped files, nothing read yet; None where the usual way maps them, or is needed."""
        headers = read_headers(files)
        kinds = {tensor.dtype for _, tensor in headers.values()} - {"I64", "I32"}
        plain = kind.startswith("diffusers.") and not any(layers_of(file) for file in files)
        if not plain or home.name in STAYS or not kinds <= {"F32", "F16", "BF16"}:
            return None
        if {TYPES[name] for name in kinds} == {dtype}:
            return None
        net = blank(home, kind, dtype)
        maps = {file: Mapped(file) for file in files}
        tensors = {name: maps[s.file].tensor(s.place) for name, s in stored_in(files).items()}
        fill(net, tensors, home)
        self.blanks.add(net)
        return net

    def settle(
        self, net: nn.Module, home: Path, dtype: torch.dtype, device: torch.device, files: Sequence[Path]
    ) -> nn.Module:
        """The network ready to be called."""
        if home.name in STAYS:
            make_way(net, self.pool)
            return net.to(device)
        own: torch.dtype | None = None
        wide: tuple[str, ...] = ()
        if net in self.blanks:  # others were opened in the types in which they compute
            whole: Any = net
            own, wide = dtype, tuple(whole._keep_in_fp32_modules or ())
        stored = stored_in([file for file in files if file.suffix == ".safetensors"])
        scratch = self.scratch or Path(tempfile.gettempdir())
        try:
            offload(net, self.pool, Rest(device, own, wide, stored, True, BY, scratch))
        except ValueError as error:
            raise BadInput("offload", f"offload: {home.name}: {error}") from error
        return net


def stored_in(files: Sequence[Path]) -> dict[str, Stored]:
    """Where these safetensors files hold what, by the names of weights."""
    return {
        name: Stored(file, Place(tensor.start, TYPES[tensor.dtype], tensor.shape))
        for name, (file, tensor) in read_headers(files).items()
        if tensor.dtype in TYPES
    }


@contextmanager
def placing(budget: int, device: torch.device) -> Iterator[Pool | None]:
    """Models opened inside this block hold no more than so many bytes of weights at once; 0 is no bound."""
    if budget < 0:
        raise BadInput("offload", f"offload = {budget} must be a number of bytes, 0 and up")
    if budget == 0:
        yield None
        return
    pool = Pool(budget, device)
    token = PLACEMENT.set(Placement(pool))
    try:
        yield pool
    finally:
        PLACEMENT.reset(token)


def offload_model(model: Model, budget: int) -> None:
    """The same for a model that is open: its weights leave memory, but for so many bytes at once.

    What is offloaded already gets the new budget. BadInput if a layer is larger.
    """
    if not isinstance(model, Checkpoint):
        raise BadInput("offload", f"{type(model).__name__} is no opened checkpoint; open it with open_model")
    nets = {name: part for name, part in model.parts.items() if name not in STAYS}
    pools = [done.pool for part in nets.values() if (done := offloaded(part.net)) is not None]
    device = next((w.device for w in model.denoise.net.parameters()), torch.device("cpu"))
    pool = pools[0] if pools else Pool(budget, device)
    try:
        pool.resize(budget)
        for part in nets.values():
            if offloaded(part.net) is None:
                if taken_off(part.net):
                    LOG.info("compiled blocks run as they are written: their weights come and go")
                files = [file for file in part.files if file.suffix == ".safetensors"]
                scratch = Path(tempfile.gettempdir())
                offload(part.net, pool, Rest(device, stored=stored_in(files), by=BY, scratch=scratch))
    except ValueError as error:
        raise BadInput("offload", f"offload: {error}") from error
    if not pools:
        for name, part in model.parts.items():
            if name in STAYS:
                make_way(part.net, pool)


def bring_back(model: Model) -> None:
    """All weights of a model in memory, as before they were offloaded; what a convert moved stays."""
    if isinstance(model, Checkpoint):
        for part in model.parts.values():
            done = offloaded(part.net)
            if done is not None and done.by == BY:
                restore(part.net)


def make_way(vae: nn.Module, pool: Pool) -> None:
    """Before an autoencoder is called everything else leaves memory."""
    for name, part in vae.named_children():
        if name in ("encoder", "decoder"):
            part.register_forward_pre_hook(lambda *_: pool.clear())
