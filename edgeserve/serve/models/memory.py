"""The memory that models share: within a budget, those asked for least recently leave it for others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

from edgeserve.errors import ModelUnavailable
from edgeserve.serve.engine import Engine
from edgeserve.serve.models.entries import Entry, Opens
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.process.blocking import apart

log = logging.getLogger(__name__)

# Without a budget nobody waits longer than that for others to open: a device may take minutes, or hang.
_PATIENCE_S: Final = 1.0


class DoesNotFit(ModelUnavailable):
    """A model that takes more memory than the budget."""


class Memory:
    """Opens engines within a budget (bytes, 0: none). Lives on the event loop, and opens one at a time, unless
    there is no budget and one takes long.

    `entries` are those that share it, `finish` closes an engine once it has answered what it has, and
    `resident` is what the process takes.
    """

    def __init__(
        self,
        opener: Opens,
        budget: int,
        resident: Callable[[], int],
        entries: Callable[[], list[Entry]],
        finish: Callable[[Engine], Awaitable[None]],
    ) -> None:
        self._opener = opener
        self._budget = budget
        self._resident = resident
        self._entries = entries
        self._finish = finish
        self._lock = asyncio.Lock()

    @property
    def bounded(self) -> bool:
        return self._budget > 0

    async def open(self, entry: Entry, model: ServedModel) -> Engine:
        """An engine, within the budget. Raises what opening raises; DoesNotFit without room."""
        async with self._turn():
            least = self._opener.estimate(entry.source, model)
            if 0 < self._budget < least:
                raise DoesNotFit(
                    f"model '{model.name}' does not fit",
                    cause=f"it takes at least {least} bytes, the budget is {self._budget}",
                    hint="raise --memory-budget",
                )
            await self._make_room(max(least, entry.size))
            before = self._resident()
            engine = await apart(partial(self._opener.open, entry.source, model), Engine.close)
            entry.size = max(least, self._resident() - before)
            await self._make_room(entry.size)
            return engine

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The time in which no other model opens, so that its memory can be measured."""
        taken = False
        with suppress(TimeoutError):
            async with asyncio.timeout(None if self.bounded else _PATIENCE_S):
                taken = await self._lock.acquire()
        try:
            yield
        finally:
            if taken:
                self._lock.release()

    def fits(self, entry: Entry, model: ServedModel) -> bool:
        """Whether an entry can be loaded without sending another away."""
        need = max(entry.size, self._opener.estimate(entry.source, model))
        return not self._budget or self._used() + need <= self._budget

    def _used(self) -> int:
        return sum(e.size for e in self._entries() if e.in_memory)

    async def _make_room(self, need: int) -> None:
        """Send models away until as many bytes are free, or nothing is left."""
        while self._budget and self._used() + need > self._budget:
            there = [e for e in self._entries() if e.in_memory]
            if not there:
                return
            idle = [e for e in there if e.model is not None and e.model.pending() == 0]
            await self._evict(min(idle or there, key=_last_used))

    async def _evict(self, entry: Entry) -> None:
        """Take a model out of memory: it answers what it has, new requests wait until it is back."""
        assert entry.model is not None
        engine = entry.model.detach("it is in memory only when it is asked for")
        if engine is None:
            return
        log.info("model '%s' version %s left the memory", *entry.source.key)
        await self._finish(engine)


def _last_used(entry: Entry) -> float:
    return entry.model.last_used if entry.model is not None else 0.0
