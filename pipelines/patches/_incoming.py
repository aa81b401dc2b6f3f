"""LoRAs on their way: a thread reads them and makes the changed weights ready while the network works without.

    with Incoming(net, [("ink.safetensors", 0.8)]) as incoming:
        ...                      # the network as it was
        with incoming.acting():  # waits, if they are not there yet
            ...                  # the network with the LoRAs in its weights

Whole layers are swapped, so acting costs nothing per call and undoing gives back the very weights. Packed and offloaded
layers, whose weights can't be had as numbers, get the two thin products per LoRA and call instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...kernels.offload import offloaded
from ..converts._adapters import added, thin
from ..converts._lora_files import LoraFile, Pair, read_lora
from ..errors import BadInput
from ..stopping import poll, stoppable

LOOK = 0.02
"""Seconds between two looks whether the run is to stop while it waits."""


class Arrived(NamedTuple):
    """All that the thread makes."""

    files: tuple[LoraFile, ...]
    weights: dict[str, nn.Parameter]
    """Module -> its weight with the LoRAs added."""
    branches: dict[str, list[tuple[Pair, float]]]
    """Module -> factors that act beside it."""


class Incoming:
    """LoRAs of one run on one network, each a file and a weight, -100..100; those of weight 0 are not read."""

    def __init__(self, net: nn.Module, loras: Sequence[tuple[str | Path, float]]) -> None:
        self.net = net
        self.loras = [(Path(file).expanduser(), scale) for file, scale in loras if scale != 0]
        self._leave = Event()
        self._pool = ThreadPoolExecutor(1, "incoming-loras")
        self._found: Future[Arrived] | None = None

    def __enter__(self) -> Incoming:
        self._found = self._pool.submit(copy_context().run, self._read)
        return self

    def __exit__(self, *told: object) -> None:
        """The thread is gone after this; it looks up between two layers."""
        self._leave.set()
        self._pool.shutdown(wait=True)

    @property
    def ready(self) -> bool:
        """Whether there is nothing to wait for. Raises what is wrong with a file as soon as that is known."""
        found = self._future()
        return found.done() and bool(found.result())

    def wait(self) -> Arrived:
        """What has arrived, or what is wrong with it; Stopped if the run is to stop meanwhile."""
        found = self._future()
        while not wait([found], LOOK).done:
            poll()
        return found.result()

    @contextmanager
    def acting(self) -> Iterator[Arrived]:
        """Inside, the network is the one with the LoRAs."""
        arrived = self.wait()
        with ExitStack() as stack:
            for name, weight in arrived.weights.items():
                stack.enter_context(_swapped(_own(self.net, name), weight))
            for name, shares in arrived.branches.items():
                layer = _own(self.net, name)
                stack.callback(layer.register_forward_hook(partial(_beside, shares)).remove)
            yield arrived

    def _future(self) -> Future[Arrived]:
        if self._found is None:
            raise RuntimeError("nothing is on its way: enter `with Incoming(...)` first")
        return self._found

    @torch.no_grad()
    def _read(self) -> Arrived:
        main = "unet" if "UNet" in type(self.net).__name__ else "transformer"
        arrived = Arrived((), {}, {})
        with stoppable(self._leave.is_set):
            for file, scale in self.loras:
                found = read_lora(file, {main: self.net}, main)
                arrived = arrived._replace(files=(*arrived.files, found))
                for name, pair in found.parts[main].items():
                    poll()
                    self._take(arrived, name, pair, scale)
        return arrived

    def _take(self, arrived: Arrived, name: str, pair: Pair, scale: float) -> None:
        layer = _own(self.net, name)
        if offloaded(self.net) is None and layer.weight.is_floating_point():
            weight = arrived.weights.get(name, layer.weight)
            whole = added(weight.detach(), pair, scale).to(weight.dtype)
            arrived.weights[name] = nn.Parameter(whole, requires_grad=False)
            return
        if pair.magnitude is not None:
            raise BadInput(
                "loras",
                f"loras: {name} is packed or offloaded, and DoRA rescales whole weights; leave it out",
            )
        like = next(weight for weight in self.net.parameters() if weight.is_floating_point())
        factors = Pair(pair.down.to(like).contiguous(), pair.up.to(like).contiguous())
        arrived.branches.setdefault(name, []).append((factors, scale))


def _own(net: nn.Module, name: str) -> Any:
    """The layer itself, should live adapters lie around it."""
    layer = net.get_submodule(name)
    while "base_layer" in layer._modules:
        layer = layer.get_submodule("base_layer")
    return layer


@contextmanager
def _swapped(layer: Any, weight: nn.Parameter) -> Iterator[None]:
    old = layer.weight
    layer.weight = weight
    try:
        yield
    finally:
        layer.weight = old


def _beside(shares: Sequence[tuple[Pair, float]], layer: nn.Module, given: Any, out: Tensor) -> Tensor:
    for pair, scale in shares:
        out = out + thin(layer, given[0], pair) * scale
    return out
