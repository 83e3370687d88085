"""When changes may run: those of different models side by side; a worker that joins waits for all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Gate:
    """Lives on one event loop. While it is closed, no change starts; it closes when no change is running."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}
        self._inside = 0
        self._closed = False
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def passing(self, what: str) -> AsyncIterator[None]:
        """Run one change of `what` at a time."""
        lock = self._locks.setdefault(what, asyncio.Lock())
        self._waiting[what] = self._waiting.get(what, 0) + 1
        try:
            async with lock:
                async with self._changed:
                    await self._changed.wait_for(lambda: not self._closed)
                    self._inside += 1
                try:
                    yield
                finally:
                    self._inside -= 1
                    await self._tell()
        finally:
            self._waiting[what] -= 1
            if not self._waiting[what]:  # names come from clients: none is kept
                del self._waiting[what], self._locks[what]

    async def close(self) -> None:
        """Returns when no change is running; none starts until `open`."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed and not self._inside)
            self._closed = True

    async def open(self) -> None:
        self._closed = False
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
