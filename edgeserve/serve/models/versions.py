"""The versions of models in one process: how one is opened, takes over from another, leaves the memory and goes,
while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Final, Literal

from edgeserve.errors import EdgeServeError, ModelUnavailable
from edgeserve.serve.engine import Engine
from edgeserve.serve.models.entries import Entry, Opened, Opens, answers
from edgeserve.serve.models.memory import DoesNotFit, Memory
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.sources import Key, ModelSource
from edgeserve.serve.process.blocking import apart, unless
from edgeserve.serve.process.heap import collect

log = logging.getLogger(__name__)

# A request may hold a model for a moment before it runs: replaced ones answer that much longer.
_GRACE_S: Final = 1.0
# A model that fails to load is tried again after that, then after twice as long each time, up to the last.
_RETRY_S: Final = 1.0
_RETRY_LONGEST_S: Final = 60.0


class Versions:
    """Lives on the event loop; owns the models, and the tasks that bring and close them.

    With a `budget` (bytes, 0: none) models come into memory when they are asked for, and those asked for
    least recently leave it; a model that runs something is never closed before that is answered.
    """

    def __init__(self, opener: Opens, budget: int, resident: Callable[[], int]) -> None:
        self._opener = opener
        self._memory = Memory(opener, budget, resident, self.all, self._finish)
        self._entries: dict[str, dict[str, Entry]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._demanded: set[Key] = set()
        self.newest: dict[str, ServedModel] = {}  # what answers for a name alone
        # Models whose absence makes the server unready: those it started with, and those that have served.
        self.expected: set[str] = set()
        self.load_failures: dict[str, int] = {}  # since the server started, by name
        self.leaving = asyncio.Event()  # no version is opened any more, but what requests wait for
        self._ending = asyncio.Event()

    @property
    def bounded(self) -> bool:
        """Whether there is a budget of memory."""
        return self._memory.bounded

    def names(self) -> list[str]:
        return list(self._entries)

    def all(self) -> list[Entry]:
        return [e for versions in self._entries.values() for e in versions.values()]

    def of(self, name: str) -> dict[str, Entry]:
        """The entries of one model by version; empty for one that is not known."""
        return self._entries.get(name, {})

    def get(self, key: Key) -> Entry | None:
        return self.of(key[0]).get(key[1])

    def answer(self, readiness: Literal["all", "any"]) -> bool:
        """As `answers`, of all there are."""
        return answers(self._entries, self.expected, readiness)

    # A version comes

    def enter(self, source: ModelSource) -> Entry:
        entry = Entry(source)
        self._entries.setdefault(source.name, {})[source.version] = entry
        return entry

    async def open(self, entry: Entry, *, demanded: bool) -> None:
        """Open a version as its source says; it serves once it is put. Where memory is short only one that is
        demanded, or is in memory already, sends others away. Raises what opening raises, which is kept in the
        entry."""
        before, entry.state = entry.state, "LOADING"
        try:
            entry.opened = await self._opened(entry, demanded=demanded)
        except EdgeServeError as error:
            if self.leaving.is_set():
                entry.error = error
            else:
                self.failed(entry, error)
            raise
        finally:
            entry.state = before

    async def _opened(self, entry: Entry, *, demanded: bool) -> Opened:
        source = entry.source
        model = await unless(self.leaving, apart(partial(self._opener.describe, source)))
        into_memory = demanded or entry.in_memory or self._memory.fits(entry, model)
        if not into_memory:
            return Opened(source, model, None)
        return Opened(source, model, await unless(self.leaving, self._memory.open(entry, model)))

    def put(self, entry: Entry) -> None:
        """Serve what was opened from now on; what served before answers what it has. Raises ModelUnavailable."""
        opened, entry.opened = entry.opened, None
        if opened is None:
            raise ModelUnavailable(f"model '{entry.source.name}' was not opened here")
        model, source = opened.model, opened.source
        if self._memory.bounded:
            model.wanted = self._demand
        if opened.engine is not None:
            model.attach(opened.engine)
            self.expected.add(source.name)
        old, entry.model = entry.model, model
        entry.state, entry.error, entry.failures = "READY", None, 0
        self._note_newest(source.name)
        if old is not None:
            log.info("model '%s' version %s was replaced", *source.key)
            self._later(self._close(old, "it was replaced", grace=True))

    async def give_up(self, entry: Entry, reason: str) -> None:
        """Close what was opened and was not put."""
        opened, entry.opened = entry.opened, None
        if opened is None:
            return
        opened.model.close(reason)
        if opened.engine is not None:
            await asyncio.to_thread(opened.engine.close)

    def failed(self, entry: Entry, error: EdgeServeError) -> None:
        """A version could not be loaded; it is tried again after a while."""
        entry.error = error
        entry.failures += 1
        name = entry.source.name
        self.load_failures[name] = self.load_failures.get(name, 0) + 1
        pause = min(_RETRY_LONGEST_S, _RETRY_S * 2 ** min(10, entry.failures - 1))
        entry.retry_at = time.monotonic() + pause
        log.error(
            "model '%s' version %s cannot be loaded (attempt %d): %s",
            *entry.source.key, entry.failures, error,
        )  # fmt: skip

    # It comes into memory when it is asked for

    def _demand(self, model: ServedModel) -> None:
        """A request waits for a model that is not in memory."""
        key = (model.name, model.version)
        entry = self.get(key)
        if self._ending.is_set() or entry is None or entry.model is not model:
            model.fail(ModelUnavailable(f"model '{model.name}' was replaced", hint="ask again"))
        elif entry.error is not None and time.monotonic() < entry.retry_at:
            model.fail(_not_ready(entry, entry.error))
        elif key not in self._demanded:
            self._demanded.add(key)
            self._later(self._bring(key))

    async def _bring(self, key: Key) -> None:
        try:
            entry = self.get(key)
            model = entry.model if entry is not None else None
            if entry is None or model is None or model.engine is not None:
                return
            try:
                engine = await unless(self._ending, self._memory.open(entry, model))
            except EdgeServeError as error:
                if not self._ending.is_set():
                    self.failed(entry, error)
                model.fail(_not_ready(entry, error))
                return
            entry.error, entry.failures = None, 0
            if entry.model is not model or self._ending.is_set():  # replaced or dropped meanwhile
                await asyncio.to_thread(engine.close)
                model.fail(ModelUnavailable(f"model '{key[0]}' was replaced", hint="ask again"))
                return
            model.attach(engine)
            self.expected.add(model.name)
        finally:
            self._demanded.discard(key)

    # It goes

    def drop_others(self, entries: Collection[Entry], known: Collection[Key]) -> None:
        """Drop what is not among `known`; but a version that serves stays until one of those does."""
        for entry in list(entries):
            if entry.source.key in known:
                continue
            name, version = entry.source.key
            wanted = [e for e in self.of(name).values() if e.source.key in known and e.off is None]
            if entry.model is None or not wanted or any(e.model is not None for e in wanted):
                self.retire(entry, "it is no longer served", grace=True)
                del self._entries[name][version]
                if not self._entries[name]:
                    del self._entries[name]
                    self.expected.discard(name)

    def retire(self, entry: Entry, reason: str, *, grace: bool) -> asyncio.Task[None] | None:
        """Take an entry's model out of service, and close it once it has answered what it has."""
        model, entry.model = entry.model, None
        entry.state = "UNAVAILABLE"
        self._note_newest(entry.source.name)
        if model is None:
            return None
        self._opener.forget(model)
        return self._later(self._close(model, reason, grace=grace))

    async def _close(self, model: ServedModel, reason: str, *, grace: bool) -> None:
        if grace:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _GRACE_S)
        model.close(reason)
        engine = model.engine
        if engine is not None:
            await self._finish(engine)
            model.detach(reason)
            await asyncio.to_thread(collect)

    async def _finish(self, engine: Engine) -> None:
        """Close an engine once it has answered what it has, or the server ends."""
        drained = asyncio.ensure_future(engine.drain(None))
        ending = asyncio.ensure_future(self._ending.wait())
        await asyncio.wait({drained, ending}, return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        ending.cancel()
        await asyncio.to_thread(engine.close)

    def _note_newest(self, name: str) -> None:
        there = {v: e.model for v, e in self.of(name).items() if e.model is not None}
        if there:
            self.newest[name] = there[max(there, key=int)]
        else:
            self.newest.pop(name, None)

    def _later(self, work: Coroutine[object, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def end(self) -> None:
        """Nothing more is opened; what closes does so without waiting for what it has begun."""
        self.leaving.set()
        self._ending.set()

    async def close(self) -> None:
        """Close every model; what still waits is not answered. After `end`, once nobody opens any more."""
        while self._tasks:
            await asyncio.gather(*self._tasks)
        for entry in self.all():
            model, entry.model = entry.model, None
            if model is not None:
                engine = model.detach("the server ends")
                model.close("the server ends")
                if engine is not None:
                    await asyncio.to_thread(engine.close)
            await self.give_up(entry, "the server ends")
        self.newest.clear()


def _not_ready(entry: Entry, error: EdgeServeError) -> ModelUnavailable:
    """For requests that waited for a version which cannot be opened."""
    kind = DoesNotFit if isinstance(error, DoesNotFit) else ModelUnavailable
    return kind(f"model '{entry.source.name}' is not ready", cause=entry.problem)
