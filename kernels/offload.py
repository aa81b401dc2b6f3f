"""A network whose weights rest in files or in the host's memory, and come in just ahead of use, under a budget.

`offload` cuts a network into units, layers that come and go together, and hooks the loads of `residence.Pool` before
and after each. Nothing is computed otherwise, so results are the same bits. `restore` undoes it.

A unit's weights are in place while its module is called, and not else: whoever reads them otherwise finds NaN, or on a
processor, where files are mapped, the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .mapped import Mapped, Place, Scratch, alignment, let_go, room_like, runs
from .residence import Pool
from .route import Route, Unit
from .units import bytes_of, needing, own, units_of

PARTS = 8
"""Buckets in a budget."""


class Stored(NamedTuple):
    """Where the file of a model holds a tensor."""

    file: Path
    place: Place


@dataclass(eq=False)
class _Slot:
    """A weight or buffer of a module: where it rests, and what stands in for it meanwhile."""

    owner: nn.Module
    name: str
    resting: Tensor
    """Mapped from a file, or in the host's memory."""
    dtype: torch.dtype
    mapped: Mapped | None
    place: Place | None
    stub: Tensor | None
    """None where the mapped weights themselves stand in the module."""
    beyond: int
    """Where it begins in memory, so that it is computed with to the same bits (`mapped.alignment`)."""

    def put(self, tensor: Tensor) -> None:
        if self.name in self.owner._parameters:
            weight = self.owner._parameters[self.name]
            assert weight is not None
            weight.data = tensor
        else:
            self.owner._buffers[self.name] = tensor

    @property
    def nbytes(self) -> int:
        return self.resting.numel() * self.dtype.itemsize


@dataclass(eq=False)
class _Cargo:
    """The weights of one unit."""

    slots: list[_Slot]
    device: torch.device
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(slot.nbytes for slot in self.slots)

    def load(self) -> None:
        self._each_run(Mapped.fetch)
        for slot in self.slots:
            if slot.stub is not None:
                room = room_like(slot.resting, slot.dtype, self.device, slot.beyond)
                slot.put(room.copy_(slot.resting, non_blocking=True))
        if any(slot.stub is not None for slot in self.slots):
            self._each_run(Mapped.release)  # copied: the pages of the file are not needed besides

    def drop(self) -> None:
        for slot in self.slots:
            if slot.stub is not None:
                slot.put(slot.stub)
        self._each_run(Mapped.release)

    def _each_run(self, act: Callable[[Mapped, int, int], None]) -> None:
        files: dict[int, tuple[Mapped, list[Place]]] = {}
        for slot in self.slots:
            if slot.mapped is not None and slot.place is not None:
                files.setdefault(id(slot.mapped), (slot.mapped, []))[1].append(slot.place)
        for mapped, places in files.values():
            for start, end in runs(places):
                act(mapped, start, end)


@dataclass(eq=False)
class Offloaded:
    """What was done to a network."""

    pool: Pool
    route: Route
    slots: list[_Slot]
    hooks: list[Any]
    stays: int
    """Bytes that stay in memory besides the pool's."""
    moved: int
    """Bytes of all that comes and goes."""
    by: str


@dataclass(frozen=True)
class Rest:
    """Where weights are to rest, and as what they compute."""

    device: torch.device
    dtype: torch.dtype | None = None
    """Of weights, and of buffers that files hold; None keeps each one's own."""
    wide: tuple[str, ...] = ()
    """Modules whose weights compute in float32 whatever `dtype` says."""
    stored: Mapping[str, Stored] = field(default_factory=dict)
    """The model's own files, by the names of weights; what they hold otherwise than the network is not taken."""
    trusted: bool = False
    """Whether the network was opened from these files just now, so that nothing has to be compared."""
    by: str = "offload"
    """Who does it, for the message when another has done it already."""
    scratch: Path | None = None
    """Folder of a file for all other weights; None keeps those in the host's memory, as pinned pages for a GPU."""

    def type_of(self, full: str, owner: nn.Module, tensor: Tensor) -> torch.dtype:
        """In which a tensor of this dotted name computes."""
        name = full.rpartition(".")[2]
        if self.dtype is None or name in owner._non_persistent_buffers_set or not tensor.is_floating_point():
            return tensor.dtype
        return torch.float32 if set(self.wide) & set(full.split(".")) else self.dtype


_DONE: WeakKeyDictionary[nn.Module, Offloaded] = WeakKeyDictionary()


def offloaded(net: nn.Module) -> Offloaded | None:
    """What was done to this network; None if nothing was."""
    return _DONE.get(net)


def offload(net: nn.Module, pool: Pool, rest: Rest) -> Offloaded:
    """The network's weights under the pool's budget, from now on. ValueError if that is too small for a layer."""
    if net in _DONE:
        raise ValueError(f"{_DONE[net].by} and {rest.by} both need the slot 'placement': drop one")
    found, stay = units_of(net, max(1, pool.budget // PARTS))
    largest = max((bytes_of(module, rest.dtype) for _, module in found), default=0)
    if largest > pool.budget:
        raise ValueError(
            f"a budget of {pool.budget:,} bytes is below the {largest:,} of its largest layer; give more"
        )
    scratch = None if rest.scratch is None else Scratch(rest.scratch)
    maps: dict[Path, Mapped] = {}
    with torch.no_grad():
        kept = [_settled(owner, full, rest) for owner, full in stay]
        slots = [_slots(prefix, module, rest, maps, scratch) for prefix, module in found]
    if scratch is not None:
        _from_scratch([slot for some in slots for slot in some], scratch, rest)
    for slot in (slot for some in slots for slot in some):
        slot.put(slot.resting if slot.stub is None else slot.stub)
    units = []
    for (name, _), some in zip(found, slots, strict=True):
        cargo = _Cargo(some, rest.device)
        cargo.drop()
        units.append(Unit(name, cargo, cargo.nbytes))
    route = pool.join(units)
    hooks = _hooks(net, [module for _, module in found], units, pool, route)
    every = [slot for some in slots for slot in some]
    moved = sum(unit.nbytes for unit in units)
    _DONE[net] = Offloaded(pool, route, every, hooks, sum(kept), moved, rest.by)
    return _DONE[net]


def restore(net: nn.Module) -> nn.Module:
    """The network as it was, all of its weights in memory, on the device where it computes."""
    done = _DONE.pop(net, None)
    if done is None:
        return net
    for hook in done.hooks:
        hook.remove()
    done.pool.leave(done.route)
    with torch.no_grad():
        for slot in done.slots:
            room = room_like(slot.resting, slot.dtype, done.pool.device, slot.beyond)
            slot.put(room.copy_(slot.resting))
            if slot.mapped is not None and slot.place is not None:
                slot.mapped.release(slot.place.start, slot.place.start + slot.place.nbytes)
    return net


def _settled(owner: nn.Module, full: str, rest: Rest) -> int:
    """A tensor that stays: in memory of its own, out of any file. Its bytes."""
    name = full.rpartition(".")[2]
    tensor = owner._parameters.get(name)
    tensor = owner._buffers[name] if tensor is None else tensor
    assert tensor is not None
    dtype, held = rest.type_of(full, owner, tensor), tensor.detach()
    moved = room_like(held, dtype, rest.device, _beyond(held, dtype)).copy_(held)
    if name in owner._parameters:
        tensor.data = moved
    else:
        owner._buffers[name] = moved
    return moved.nbytes


def _slots(
    prefix: str, module: nn.Module, rest: Rest, maps: dict[Path, Mapped], scratch: Scratch | None
) -> list[_Slot]:
    """Those of one unit; weights that are in no file of the model go into the scratch file, or stay on the host."""
    found = []
    for path, part in module.named_modules():
        for name, tensor in own(part):
            if tensor.numel() == 0:
                continue
            full = ".".join(piece for piece in (prefix, path, name) if piece)
            stored, dtype = rest.stored.get(full), rest.type_of(full, part, tensor)
            mapped = place = None
            resting = tensor.detach()
            if stored is not None and stored.place.shape == tuple(tensor.shape):
                if stored.file not in maps:
                    maps[stored.file] = Mapped(stored.file)
                mapped, place = maps[stored.file], stored.place
                if rest.trusted or _same(mapped, place, resting):
                    let_go([resting])  # where another map of the file holds them
                    resting = mapped.tensor(place)
                else:
                    mapped = place = None
            if mapped is None and scratch is not None:
                (place,) = scratch.write([resting])
                resting = resting.new_empty(()).expand(resting.shape)  # until the file is whole
            elif mapped is None and rest.device.type == "cuda":
                resting = _pinned(resting)
            direct = mapped is not None and rest.device.type == "cpu" and dtype == resting.dtype
            stub = None if direct else _stub(tensor, dtype, rest.device)
            slot = _Slot(part, name, resting, dtype, mapped, place, stub, _beyond(tensor, dtype))
            slot.put(resting if stub is None else stub)  # the old weights can go
            found.append(slot)
    return found


def _beyond(tensor: Tensor, dtype: torch.dtype) -> int:
    """Where it is to begin: where it does, or where fresh memory does if it becomes another type."""
    return alignment(tensor) if tensor.dtype == dtype else 0


def _from_scratch(slots: Sequence[_Slot], scratch: Scratch, rest: Rest) -> None:
    for slot in slots:
        if slot.mapped is None and slot.place is not None:
            slot.mapped = scratch.mapped
            slot.resting = slot.mapped.tensor(slot.place)
            if rest.device.type == "cpu" and slot.dtype == slot.resting.dtype:
                slot.stub = None


def _same(mapped: Mapped, place: Place, tensor: Tensor) -> bool:
    """Whether the file still says what the network holds: a merged LoRA or packed codes are no longer there."""
    held = mapped.tensor(place)
    mapped.fetch(place.start, place.start + place.nbytes)
    same = torch.equal(held.to(tensor.dtype), tensor.to(held.device))
    mapped.release(place.start, place.start + place.nbytes)
    return same


def _pinned(tensor: Tensor) -> Tensor:
    room = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return room.copy_(tensor)


def _stub(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Shape, type and device of the weight, in the memory of one number."""
    value = math.nan if dtype.is_floating_point else 0
    return torch.full((), value, dtype=dtype, device=device).expand(tensor.shape)


def _hooks(
    net: nn.Module, modules: Sequence[nn.Module], units: Sequence[Unit], pool: Pool, route: Route
) -> list[Any]:
    hooks = [
        net.register_forward_pre_hook(lambda *_: pool.begin(route)),
        net.register_forward_hook(lambda *_: pool.end(route), always_call=True),
    ]
    for module, unit in zip(modules, units, strict=True):
        for part in needing(module):
            hooks.append(part.register_forward_pre_hook(lambda *_, unit=unit: pool.enter(unit, route)))
            hooks.append(part.register_forward_hook(lambda *_, unit=unit: pool.exit(unit), always_call=True))
    return hooks
