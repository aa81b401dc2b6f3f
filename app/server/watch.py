"""Tells whoever waits that something changed in the store: one look for all of them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress

PACE = 0.02
"""Seconds between two looks; a look takes microseconds."""


class Watch:
    """Belongs to the event loop."""

    def __init__(self, version: Callable[[], int]) -> None:
        self.count = 0
        self._version = version
        self._event = asyncio.Event()

    async def run(self) -> None:
        last = self._version()
        while True:
            await asyncio.sleep(PACE)
            with suppress(sqlite3.Error):  # those who wait look for themselves too
                if (now := self._version()) != last:
                    last = now
                    self.wake()

    def wake(self) -> None:
        self.count += 1
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def after(self, count: int, seconds: float) -> bool:
        """Whether there was a change after the one of number `count`, within so many seconds."""
        if self.count != count:
            return True
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return False
        return True
