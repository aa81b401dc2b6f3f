"""Which layers' weights are in memory: a budget in bytes, loads ahead of use by a thread, the furthest use gives way.

The order in which a network comes to its layers is the same call after call, so the next use of each is known. As many
as fit, spread evenly over the call, stay between calls; the others pass through the room that is left, each loaded
while those before it compute, and the one whose next use is furthest away gives way (Belady, 1966). Layers of networks
that are not being called go first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from .route import Route, Tally, Unit


class Pool:
    """Units of one or several networks that share a budget of bytes on one device."""

    def __init__(self, budget: int, device: torch.device) -> None:
        self.budget, self.device = budget, device
        self.tally = Tally()
        self.held = 0
        self._routes: list[Route] = []
        self._owner: dict[Unit, Route] = {}
        self._wanted: list[Unit] = []
        self._loading: Unit | None = None
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def join(self, units: list[Unit]) -> Route:
        """A network's units, none of them larger than the budget."""
        route = Route(units, budget=self.budget)
        with self._changed:
            self._routes.append(route)
            self._owner.update(dict.fromkeys(units, route))
        return route

    def resize(self, budget: int) -> None:
        """Another budget from now on. ValueError if a unit is larger."""
        with self._changed:
            largest = max((unit.nbytes for unit in self._owner), default=0)
            if largest > budget:
                raise ValueError(
                    f"a budget of {budget:,} bytes is below the {largest:,} of a bucket; give more"
                )
            self.budget = budget
            for route in self._routes:
                route.budget = budget
                route.index()
        self.clear()

    def leave(self, route: Route) -> None:
        """The network goes; what it holds is dropped."""
        with self._changed:
            self._settle()
            for unit in route.units:
                if unit.ready:
                    self._drop(unit)
                del self._owner[unit]
            self._routes.remove(route)

    def clear(self) -> None:
        """Drop whatever is not in use: someone else needs the room."""
        with self._changed:
            self._settle()
            for unit in self._owner:
                if unit.ready and not unit.busy:
                    self._drop(unit)

    def _settle(self) -> None:
        """Wait for the load at hand. Holding the lock."""
        while self._loading is not None:
            self._changed.wait()

    def begin(self, route: Route) -> None:
        with self._changed:
            route.begin()
            self._wake()

    def end(self, route: Route) -> None:
        with self._changed:
            route.end()
            self._changed.notify_all()

    def enter(self, unit: Unit, route: Route) -> None:
        """The unit, or a layer in it, is about to compute: its weights are there when this returns."""
        with self._changed:
            if route.running and not unit.busy:
                route.seen.append(unit)
            unit.busy += 1
            if not unit.ready:
                began = time.perf_counter()
                self._wanted.append(unit)
                self._wake()
                while not unit.ready:
                    if self._failure is not None:
                        failure, self._failure = self._failure, None
                        unit.busy -= 1
                        raise failure
                    self._changed.wait()
                self.tally.waits += 1
                self.tally.waited += time.perf_counter() - began
            elif unit.busy == 1:
                self._wake()
        if unit.loaded is not None:
            torch.cuda.current_stream(self.device).wait_event(unit.loaded)

    def exit(self, unit: Unit) -> None:
        """It has computed."""
        with self._changed:
            unit.busy = max(0, unit.busy - 1)
            if unit.busy:
                return
            if self._side is not None:
                unit.used = torch.cuda.current_stream(self.device).record_event()
            self._changed.notify_all()

    def _wake(self) -> None:
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=self._work, name="sfumato-weights", daemon=True)
            self._worker.start()
        self._changed.notify_all()

    def _work(self) -> None:
        """Load what is wanted, then what comes next; end when no network is being called."""
        while True:
            with self._changed:
                unit = self._next()
                while unit is None:
                    if not self._wanted and not any(route.running for route in self._routes):
                        self._worker = None
                        return
                    self._changed.wait()
                    unit = self._next()
                self._loading = unit
                self.held += unit.nbytes
                self.tally.peak = max(self.tally.peak, self.held)
            failure = self._load(unit)
            with self._changed:
                self._loading = None
                if failure is None:
                    unit.ready = True
                    self.tally.loads += 1
                else:
                    self.held -= unit.nbytes
                    self._failure = failure
                    self._wanted.clear()
                self._changed.notify_all()

    def _load(self, unit: Unit) -> Exception | None:
        try:
            with self._on_the_side():
                unit.cargo.load()
                unit.loaded = None if self._side is None else self._side.record_event()
        except (OSError, RuntimeError, MemoryError, ValueError) as error:
            return error
        return None

    def _on_the_side(self) -> AbstractContextManager[object]:
        return nullcontext() if self._side is None else torch.cuda.stream(self._side)

    def _next(self) -> Unit | None:
        """What to load now, room made for it; None if there is nothing, or no room. Holding the lock."""
        while self._wanted:
            unit = self._wanted[0]
            if unit.ready:
                self._wanted.pop(0)
                continue
            if self._make_room(unit, lambda other: True):
                self._wanted.pop(0)
                return unit
            return None
        running = next((route for route in reversed(self._routes) if route.running), None)
        if running is None:
            return None
        absent = [unit for unit in running.uses if not unit.ready]
        if not absent:
            return None
        unit = min(absent, key=running.distance)
        near = running.distance(unit)
        if self._make_room(unit, lambda other: self._distance(other) > near):
            return unit
        return None

    def _distance(self, unit: Unit) -> float:
        """How gladly it is let go of."""
        route = self._owner[unit]
        if not route.running:
            return float("inf")
        return -1 if unit in route.stays else route.distance(unit)

    def _make_room(self, unit: Unit, may_go: Callable[[Unit], bool]) -> bool:
        """Drop the furthest until the unit fits; nothing if that can't be reached."""
        lacking = self.held + unit.nbytes - self.budget
        if lacking <= 0:
            return True
        idle = [other for other in self._owner if other.ready and not other.busy and may_go(other)]
        idle.sort(key=lambda other: self._distance(other), reverse=True)
        going: list[Unit] = []
        for other in idle:
            if lacking <= 0:
                break
            going.append(other)
            lacking -= other.nbytes
        if lacking > 0:
            return False
        for other in going:
            self._drop(other)
        return True

    def _drop(self, unit: Unit) -> None:
        """Holding the lock. On a GPU the room is used again only after the unit's last use, on the side stream."""
        if self._side is not None and unit.used is not None:
            self._side.wait_event(unit.used)
        unit.cargo.drop()
        unit.ready, unit.loaded = False, None
        self.held -= unit.nbytes
